"""The fast arithmetic of a CUDA device: packed weights, Triton kernels, a decoder's step as one graph."""
