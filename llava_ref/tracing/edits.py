"""Change the arrays of a run by functions."""

import inspect
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from ..errors import ParameterError
from ..ops.protocol import Array, Ops
from .trace import At, Probe

Edit = Callable[[Array, At], Array] | Callable[[Array], Array]


class Edits(Probe):
    """Changes arrays by functions `function(x)` or `function(x, at) -> x`, which keep shape and type.

    A function gets a prompt's rows all at once, so that `x[-1]` is its last position, and then one row for each token;
    a picture's stages it gets once per picture, or tile. `x` is a copy that it may change: the backend's array, float32
    (for `image.` stages: numpy, uint8). It may return a numpy array with either backend. All functions whose pattern
    matches are applied, in order. Raises ParameterError for a wrong function, shape or type."""

    whole = True
    edits = True

    def __init__(self, functions: Mapping[str, Edit], ops: Ops) -> None:
        super().__init__(tuple(functions))
        self._functions = {glob: _with_place(glob, function) for glob, function in functions.items()}
        self._ops = ops

    def see(self, x: Array, at: At) -> Array:
        for glob, function in self._functions.items():
            if fnmatchcase(at.name, glob):
                x = self._checked(function(x * 1, at), x, at)
        return x

    def _checked(self, y: Array, x: Array, at: At) -> Array:
        if not isinstance(y, (np.ndarray, type(x))):
            raise ParameterError("intervene", at.name, f"the function returned {type(y).__name__}, expected an array")
        returned, expected = (f"{str(a.dtype).removeprefix('torch.')} {list(a.shape)}" for a in (y, x))
        if returned != expected:
            raise ParameterError("intervene", at.name, f"the function returned {returned}, expected {expected}")
        return y if isinstance(y, type(x)) else self._ops.array(y)


def _with_place(glob: str, function: Any) -> Callable[[Array, At], Array]:
    """Wrap a function as one of two arguments, x and at.

    It gets `at` if it has an argument of this name or requires two. Raises ParameterError if it takes neither one nor
    two."""
    if not callable(function):
        problem = f"{type(function).__name__}, expected a function of x, or x and at"
        raise ParameterError("intervene", repr(glob), problem)
    try:
        signature = inspect.signature(function)
    except ValueError:  # builtins and numpy's own functions have no signature; they take x
        return lambda x, at: function(x)
    if "at" not in signature.parameters and _takes(signature, 1):
        return lambda x, at: function(x)
    if _takes(signature, 2):
        return function
    raise ParameterError("intervene", repr(glob), f"a function of {signature}, expected one of x, or x and at")


def _takes(signature: inspect.Signature, count: int) -> bool:
    try:
        signature.bind(*range(count))
    except TypeError:
        return False
    return True
