"""Compile kernels, and keep the machine code in the user's cache directory.

A kernel is a compiled function `void(args, first, end)` of three int64, called by its address: it does the items
`first` to `end - 1` of a launch; `args` is the address of an int64 array. What kernels share are `@inlined` functions.

numba's own cache looks at the kernel's file alone, and the vector code is in others: so the folder is named by a hash
of every file here, of the versions and of the processor. It is used for these functions only. Where it cannot be
written, they are compiled in each process. A kernel that closes over a variable would not be found again: everything
it names stands at the top level of its module.
"""

import hashlib
import os
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import llvmlite.binding
import numba
from numba import types
from numba.core.caching import CompileResultCacheImpl, FunctionCache, UserProvidedCacheLocator
from numba.core.ccallback import CFunc
from numba.core.registry import CPUDispatcher
from numba.core.runtime import _nrt_python  # type: ignore[attr-defined]

from . import simd

SIGNATURE = types.void(types.int64, types.int64, types.int64)
OPTIONS = {"nopython": True, "error_model": "numpy"}


class Kernel(NamedTuple):
    """A compiled function and its address."""

    name: str
    address: int


@cache
def folder() -> Path:
    """Return the folder of compiled kernels: another one for every version of them, and for every processor."""
    stamp = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        stamp.update(path.read_bytes())
    host = (simd.SET, simd.LOWERED, llvmlite.binding.get_host_cpu_name(), sorted(simd.HOST.items()))
    stamp.update(repr((numba.__version__, llvmlite.__version__, sys.version, host)).encode())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llava-ref" / "kernels" / stamp.hexdigest()[:20]


class _Locator(UserProvidedCacheLocator):
    def __init__(self, function: Any, file: str):
        self._py_file, self._lineno = file, function.__code__.co_firstlineno
        self._cache_path = str(folder())

    def get_disambiguator(self) -> str:
        """Tell functions of the same name apart that are in files of the same name."""
        return f"{hashlib.sha256(self._py_file.encode()).hexdigest()[:8]}-{self._lineno}"

    @classmethod
    def from_function(cls, function: Any, file: str) -> Any:
        found = cls(function, file)
        try:
            found.ensure_cache_path()
        except OSError:
            return None
        return found


class _Files(CompileResultCacheImpl):
    _locator_classes = [_Locator]


class _Cache(FunctionCache):
    _impl_class = _Files

    def load_overload(self, sig, target_context):
        """Load a function. What numba knows to compile stays away, 0.15 s: machine code is all that is loaded."""
        runtime()
        with self._guard_against_spurious_io_errors():
            return self._load_overload(sig, target_context)


@cache
def runtime() -> None:
    """Tell LLVM where the functions of numba's runtime are: machine code may name them, if only to free memory."""
    for name, address in _nrt_python.c_helpers.items():
        llvmlite.binding.add_symbol(name if name.startswith("_") else f"NRT_{name}", address)


class Inlined(CPUDispatcher):
    """A function that is compiled into its callers; where Python calls it, as a traced kernel does, Python runs it."""

    def __call__(self, *args: Any) -> Any:
        return self.py_func(*args)


def inlined(function: Callable[..., Any]) -> Any:
    """Make a function that kernels call, and that becomes part of them."""
    return Inlined(function, {}, {"nopython": True, "forceinline": True, "error_model": "numpy"})


def compiled(function: Callable[..., Any], signature: Any) -> int:
    """Compile a function, or load it, and return its address."""
    made: Any = CFunc(function, (signature.args, signature.return_type), {}, OPTIONS)
    try:
        made._cache = _Cache(function)
    except (RuntimeError, OSError):  # the folder cannot be written, or the source is no file
        pass
    made.compile()
    return int(made.address)


def kernel(function: Callable[..., Any]) -> Kernel:
    """Compile a kernel, a function of (args, first, end)."""
    return Kernel(function.__name__, compiled(function, SIGNATURE))
