"""Behind the commands compare and memory: what is measured, and its tables and pictures."""
