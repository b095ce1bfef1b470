"""Where kernels are tested: on a CUDA device, else in Triton's interpreter, on CPU tensors."""

from importlib.util import find_spec
from types import SimpleNamespace

import torch

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"

if DEVICE == "cpu" and find_spec("triton"):
    from triton import language
    from triton.runtime import interpreter

    # half of the interpreter's time: whether a sum of integers overflows, which it reports in debug mode only
    interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)

    # two thirds of the rest: a launch puts interpreted functions into the language, and so did every call in it again
    interpret, everywhere = interpreter._patch_lang, {"tl": language, "core": language.core}
    interpreter._patch_lang = lambda kernel: interpret(SimpleNamespace(__globals__=everywhere))
    interpreter.InterpretedFunction.__call__ = lambda function, *args, **named: function.rewrite()(*args, **named)
