"""Builds, tests and measures everything on a GPU in one call of a few minutes: ``python -m
benchmarks.gpu``.

`call` controls the call: it starts each phase as processes with a time limit, and does not import
torch. Every phase has its module. `record` writes results to disk; `summary` and `pages` present
them.
"""
