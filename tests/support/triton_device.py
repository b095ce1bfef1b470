"""Where kernels are tested: on a CUDA device, else in Triton's interpreter, on CPU tensors."""

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
