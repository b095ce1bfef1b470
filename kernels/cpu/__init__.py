"""Kernels for the processor: written by Python, compiled by LLVM, with vectors of 64 bytes (simd.py)."""
