"""One folder per op, the same rooms in each: see CONTRIBUTING.md."""
