"""Recipes: their keys, and how one is read from a file and the command line."""
