"""Compile a kernel's code once for each type: the type's block stands in it under one name.

A kernel given as `@for_types` names `BLOCK`, `WEIGHTS` and `BYTES`, which are nothing in its module. For a type, its
code is taken with other global names, and compiled under a name of its own: so it is found again in the cache, which a
function that closes over a block would not be, and a type is compiled when it is first needed.
"""

from collections.abc import Callable
from functools import cache
from importlib import import_module
from types import FunctionType
from typing import Any

from llava_ref.gguf.types import TYPES

from .functions import Kernel, kernel

QUANTISED = frozenset(
    ("Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "IQ4_XS", "MXFP4")
)
"""The types that have a module in `decode`."""
BLOCK: Any = None
WEIGHTS = BYTES = 0


def named(function: Callable[..., Any], suffix: str, **names: Any) -> Kernel:
    """Compile a kernel in which some global names stand for these."""
    made = FunctionType(function.__code__, function.__globals__ | names, f"{function.__name__}_{suffix}")
    made.__module__, made.__qualname__, made.__doc__ = function.__module__, made.__name__, function.__doc__
    return kernel(made)


def for_types(function: Callable[..., Any]) -> Callable[[str], Kernel]:
    """Make a function of a type's name that compiles the kernel for it, once."""

    @cache
    def of(kind: str) -> Kernel:
        decode = import_module(f"{__package__}.decode.{kind.lower()}")
        block = TYPES[kind]
        return named(function, kind.lower(), BLOCK=decode.block, WEIGHTS=block.weights, BYTES=block.bytes)

    return of
