"""Training, evaluation and export from the command line: see README.md."""

import os
import sys

# At every barrier between threads libgomp, PyTorch's OpenMP runtime on Linux, spins 300 000 turns
# before it sleeps. With other work on the cores a thread then waits for one that it keeps from
# running; a short spin costs nothing on idle ones. libgomp reads the number when torch is loaded,
# so it is set before, for commands (`python -m training.train` comes here first); a process that
# has torch already stays as it is.
SPINS = {"GOMP_SPINCOUNT": "1000"}

if "torch" not in sys.modules and not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ.update(SPINS)
