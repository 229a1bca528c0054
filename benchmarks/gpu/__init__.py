"""Everything that a GPU has to show, in one call of a few minutes: ``python -m benchmarks.gpu``.

`call` is the course of a call: it starts each phase as processes with a limit, and imports no
torch. Every phase has a module; `record` is how results come to disk, `summary` and `pages` what
is made of them.
"""
