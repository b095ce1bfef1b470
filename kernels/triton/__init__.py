"""Triton kernels for CUDA devices; each is checked against kernels/reference.py."""
