"""A run directory: what is in it, and how to get a model back from it."""
