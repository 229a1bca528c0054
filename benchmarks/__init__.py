"""Speed and memory of every op beside the ways to compute it without fastseq: see README.md."""
