"""Definitions of every operation in plain torch, and the kernels that compute them faster."""
