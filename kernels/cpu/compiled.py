"""Compile kernels when they are first run, and keep the machine code in the user's cache directory.

A kernel is a compiled function `void(args, first, end)` of three int64, called by its address: it does the items
`first` to `end - 1` of a launch; `args` is the address of an int64 array. It is written by running a function of Python
once (traced.py). A file of machine code is named by its kernel, its folder by a hash of every source here, of the
versions and of the processor. Where the folder cannot be written, kernels are compiled in each process.
"""

import hashlib
import os
import sys
import tempfile
from collections.abc import Callable
from functools import cache, cached_property
from pathlib import Path
from threading import RLock
from typing import Any

import llvmlite
from llvmlite import binding, ir

from . import processor
from .llvm import I64
from .traced import write

SIGNATURE = ir.FunctionType(ir.VoidType(), [I64] * 3)
Body = Callable[[Any, Any, Any], None]
LOCK = RLock()
DIGEST = hashlib.sha256().digest_size
KERNELS = set[str]()
"""The names that are taken."""


class Kernel:
    """A function to compile, and its address once that is done. Its name stands for it in the folder."""

    def __init__(self, name: str, body: Body) -> None:
        if name in KERNELS:
            raise ValueError(f"two kernels named {name}")
        KERNELS.add(name)
        self.name, self._body = name, body

    @cached_property
    def address(self) -> int:
        """Return where the machine code is."""
        with LOCK:
            return _loaded(self.name, self._code())

    def _code(self) -> bytes:
        """Return the machine code, from the folder if it is there."""
        code = _kept(self.name)
        if code is None:
            code = machine_code(self.name, self._body)
            _keep(self.name, code)
        return code


def kernel(body: Body) -> Kernel:
    """Make a kernel of a function, named by its module and its own name."""
    return Kernel(f"{body.__module__.rpartition('.cpu.')[2]}.{body.__name__}", body)


def assembly(name: str, body: Body) -> str:
    """Return a kernel in LLVM's language, not optimised."""
    module = ir.Module(name)
    function = ir.Function(module, SIGNATURE, name)
    write(function, body)
    return str(module)


def machine_code(name: str, body: Body) -> bytes:
    """Compile a kernel to an object file. Vectors are written out, so LLVM looks for none."""
    with LOCK:
        module, machine = binding.parse_assembly(assembly(name, body)), processor.target()
        module.triple, module.data_layout = machine.triple, str(machine.target_data)
        options = binding.create_pipeline_tuning_options(speed_level=2)
        options.loop_vectorization = options.slp_vectorization = options.loop_interleaving = False
        passes = binding.create_pass_builder(machine, options)
        passes.getModulePassManager().run(module, passes)
        return bytes(machine.emit_object(module))


@cache
def folder() -> Path:
    """Return the folder of machine code: another one for every version of the kernels, and for every processor."""
    stamp = hashlib.sha256()
    for path in sorted(Path(__file__).parent.rglob("*.py")):
        stamp.update(path.read_bytes())
    stamp.update(repr((llvmlite.__version__, sys.platform, processor.LEVEL, processor.named())).encode())
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "llava-ref" / "kernels" / stamp.hexdigest()[:20]


def _kept(name: str) -> bytes | None:
    """Return a kernel's machine code from the folder, None where it is not there or not whole."""
    try:
        data = (folder() / f"{name}.o").read_bytes()
    except OSError:
        return None
    digest, code = data[:DIGEST], data[DIGEST:]
    return code if hashlib.sha256(code).digest() == digest else None


def _keep(name: str, code: bytes) -> None:
    """Write a kernel's machine code to the folder, whole or not at all."""
    try:
        folder().mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder()) as place:
            whole = Path(place) / name
            whole.write_bytes(hashlib.sha256(code).digest() + code)
            os.replace(whole, folder() / f"{name}.o")
    except OSError:  # the folder cannot be written
        pass


@cache
def _engine() -> Any:
    machine = processor.target()
    module = binding.parse_assembly("")
    module.triple = machine.triple
    return binding.create_mcjit_compiler(module, machine)


def _loaded(name: str, code: bytes) -> int:
    """Lay machine code into memory that may be run, and return its address."""
    _engine().add_object_file(binding.ObjectFileRef.from_data(code))
    _engine().finalize_object()
    return int(_engine().get_function_address(name))
