"""The commands compare and memory: their measurements, tables and pictures."""
