"""Compute on a processor as fast as its memory allows: `ops.CpuOps` over the kernels of `kernels/cpu`."""
