"""Recipes: their keys, and how they are read from a file and the command line."""
