"""Training, evaluation and export from the command line: see README.md."""

import os
import sys

# libgomp is PyTorch's OpenMP runtime on Linux. At a barrier each of its threads spins 300,000 turns
# before it sleeps. When the cores have other work, a spinning thread blocks the very thread that it
# waits for; a short spin costs nothing on idle cores. libgomp reads the number when torch is
# loaded, so commands set it before (`python -m training.train` imports this file first). A process
# that has loaded torch already is left unchanged.
SPINS = {"GOMP_SPINCOUNT": "1000"}

if "torch" not in sys.modules and not os.environ.keys() & {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"}:
    os.environ.update(SPINS)
