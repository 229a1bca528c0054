"""Speed and memory of every op beside the ways to compute it without fastseq: see README.md."""

import training  # noqa: F401  short waits at OpenMP's barriers, in this process and its workers
