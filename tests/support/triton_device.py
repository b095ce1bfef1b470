"""Where kernels are tested: on a CUDA device, else in Triton's interpreter, on CPU tensors."""

from importlib.util import find_spec

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and find_spec("triton"):
    from triton.runtime import interpreter

    # half of the interpreter's time: whether a sum of integers overflows, which it reports in debug mode only
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
