"""Helpers for every other folder: commands, files written whole, ranks and signals."""
