"""Speed and memory of every op, compared with computing it without fastseq: see README.md."""

import training  # noqa: F401  short waits at OpenMP's barriers, in this process and its workers
