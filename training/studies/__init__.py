"""Behind the commands compare and memory: what is compared, one measured step and its picture."""
