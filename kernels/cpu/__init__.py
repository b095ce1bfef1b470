"""Kernels for the processor: compiled by numba from Python, with vectors of 64 bytes (simd.py)."""
