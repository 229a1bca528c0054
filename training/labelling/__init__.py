"""The page on which phase boundaries are set by keys, and the server behind it."""
