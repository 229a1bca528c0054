"""Run directories: their content, and loading a model from them."""
