"""Engines turn readings into pixels: DALI on the GPU, DALI on the CPU, PyAV."""
