"""One folder per op, all laid out in the same way: see CONTRIBUTING.md."""
