"""Open a build of llama.cpp with ctypes: neither its headers nor a package of bindings is needed.

Its parameter structs grow with nearly every release. So only their heads are declared, as far as the fields that are
changed here, and room behind them: structs of this size are returned and passed in memory, where a function reads and
writes no more than it knows. Whether the heads fit is seen from the defaults in them, and from what the library then
says of a context. Read in llama.cpp b11549: include/llama.h, tools/mtmd/mtmd.h.
"""

import ctypes as c
import os
from collections.abc import Iterator
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ...extras import missing

VARIABLE = "LLAMA_CPP_LIB"
"""Names the file of a native libllama; the libraries that it needs, and libmtmd, lie beside it."""
ROOM = 1024
"""Bytes behind the head of a struct: several times what any release has had."""
NEIGHBOURS = ("ggml-base", "ggml-cpu", "ggml")
IMAGE = 1  # mtmd.h, MTMD_INPUT_CHUNK_TYPE_IMAGE
WARNING, ERROR = 3, 4  # ggml.h, enum ggml_log_level
Pointer, Text, Ids, Floats = c.c_void_p, c.c_char_p, c.POINTER(c.c_int32), c.POINTER(c.c_float)
Log = c.CFUNCTYPE(None, c.c_int, Text, Pointer)


class ModelParams(c.Structure):
    """The head of `llama_model_params`."""

    _fields_ = [("devices", Pointer), ("overrides", Pointer), ("n_gpu_layers", c.c_int32), ("rest", c.c_char * ROOM)]


class ContextParams(c.Structure):
    """The head of `llama_context_params`."""

    _fields_ = [("n_ctx", c.c_uint32), ("n_batch", c.c_uint32), ("n_ubatch", c.c_uint32), ("rest", c.c_char * ROOM)]


class TowerParams(c.Structure):
    """The head of `mtmd_context_params`."""

    _fields_ = [
        ("use_gpu", c.c_bool),
        ("device", Pointer),
        ("print_timings", c.c_bool),
        ("n_threads", c.c_int),
        ("markers", Pointer * 2),
        ("flash_attn_type", c.c_int),
        ("warmup", c.c_bool),
        ("rest", c.c_char * ROOM),
    ]


class TokenBatch(c.Structure):
    """`llama_batch`, which only passes through."""

    _fields_ = [("n_tokens", c.c_int32), ("rest", c.c_char * ROOM)]


class PromptText(c.Structure):
    """`mtmd_input_text`."""

    _fields_ = [("text", Text), ("length", c.c_size_t), ("add_special", c.c_bool), ("parse_special", c.c_bool)]


DEFAULTS: dict[str, dict[str, tuple[int, ...]]] = {  # function -> field -> the values that releases have had
    "llama_model_default_params": {"n_gpu_layers": (-1, 999)},
    "llama_context_default_params": {"n_ctx": (512,), "n_batch": (2048,), "n_ubatch": (512,)},
    "mtmd_context_params_default": {
        "use_gpu": (1,),
        "print_timings": (1,),
        "n_threads": (4,),
        "flash_attn_type": (-1,),
        "warmup": (1,),
    },
}
TEXT: dict[str, tuple[Any, ...]] = {  # function -> result, arguments
    "llama_backend_init": (None,),
    "llama_print_system_info": (Text,),
    "llama_log_set": (None, Log, Pointer),
    "llama_model_default_params": (ModelParams,),
    "llama_context_default_params": (ContextParams,),
    "llama_model_load_from_file": (Pointer, Text, ModelParams),
    "llama_model_free": (None, Pointer),
    "llama_model_get_vocab": (Pointer, Pointer),
    "llama_vocab_n_tokens": (c.c_int32, Pointer),
    "llama_init_from_model": (Pointer, Pointer, ContextParams),
    "llama_free": (None, Pointer),
    "llama_n_batch": (c.c_uint32, Pointer),
    "llama_n_ubatch": (c.c_uint32, Pointer),
    "llama_n_ctx": (c.c_uint32, Pointer),
    "llama_n_threads": (c.c_int32, Pointer),
    "llama_set_n_threads": (None, Pointer, c.c_int32, c.c_int32),
    "llama_get_memory": (Pointer, Pointer),
    "llama_memory_clear": (None, Pointer, c.c_bool),
    "llama_batch_get_one": (TokenBatch, Ids, c.c_int32),
    "llama_decode": (c.c_int32, Pointer, TokenBatch),
    "llama_get_logits_ith": (Floats, Pointer, c.c_int32),
}
TOWER: dict[str, tuple[Any, ...]] = {
    "mtmd_log_set": (None, Log, Pointer),
    "mtmd_context_params_default": (TowerParams,),
    "mtmd_init_from_file": (Pointer, Text, Pointer, TowerParams),
    "mtmd_free": (None, Pointer),
    "mtmd_default_marker": (Text,),
    "mtmd_bitmap_init": (Pointer, c.c_uint32, c.c_uint32, Text),
    "mtmd_bitmap_free": (None, Pointer),
    "mtmd_input_chunks_init": (Pointer,),
    "mtmd_input_chunks_size": (c.c_size_t, Pointer),
    "mtmd_input_chunks_get": (Pointer, Pointer, c.c_size_t),
    "mtmd_input_chunks_free": (None, Pointer),
    "mtmd_input_chunk_get_type": (c.c_int, Pointer),
    "mtmd_tokenize": (c.c_int32, Pointer, Pointer, c.POINTER(PromptText), c.POINTER(Pointer), c.c_size_t),
    "mtmd_encode_chunk": (c.c_int32, Pointer, Pointer),
    "mtmd_get_output_embd": (Floats, Pointer),
}


class LlamaCppError(Exception):
    """llama.cpp is absent, is of an unknown release, or refused."""


def find() -> Path:
    """Return the library that `LLAMA_CPP_LIB` names, else that of the package xllamacpp. Raises LlamaCppError."""
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise LlamaCppError(f"{VARIABLE} is {named}, which is no file: expected that of a libllama")
        return Path(named).absolute()
    spec = find_spec("xllamacpp")
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        for path in Path(folder).glob("xllamacpp*.so"):
            return path
    native = f"{VARIABLE} may name the file of a native libllama, which is faster: with AVX-512"
    raise LlamaCppError(f"{missing('conformance')}; {native}")


class LlamaLibraries:
    """The functions of a build as attributes: `llama_*`, and `mtmd_*` where a tower is wanted. `ggml`: its version."""

    def __init__(self, path: Path, *, tower: bool) -> None:
        """Load the libraries. Raises LlamaCppError where one does not load or its structs do not fit."""
        self.path, self.log, self.ggml = path, list[str](), "unknown"
        self._log = Log(self._keep)
        try:
            for neighbour in _neighbours(path):
                with suppress(OSError):  # libllama finds it by itself, or says that it does not
                    self._prepare(c.CDLL(str(neighbour), c.RTLD_GLOBAL))
            self._add(self._prepare(c.CDLL(str(path), c.RTLD_GLOBAL)), TEXT)
            if tower:
                self._add(c.CDLL(str(_beside(path, "mtmd") or path)), TOWER)
        except (OSError, AttributeError) as error:
            raise LlamaCppError(f"{path}: {error}") from None
        self._check()
        self.llama_log_set(self._log, None)
        if tower:
            self.mtmd_log_set(self._log, None)
        self.llama_backend_init()

    def __getattr__(self, name: str) -> Any:  # mypy's word that the functions are attributes
        raise AttributeError(name)

    def _add(self, library: c.CDLL, functions: dict[str, tuple[Any, ...]]) -> None:
        for name, (result, *arguments) in functions.items():
            function = getattr(library, name)
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def _prepare(self, library: c.CDLL) -> c.CDLL:
        """Read ggml's version, and load the processors' code of a build that has it in libraries of its own."""
        with suppress(AttributeError):
            version = library.ggml_version
            version.restype, version.argtypes = Text, []
            self.ggml = version().decode()
        with suppress(AttributeError):
            load = library.ggml_backend_load_all_from_path
            load.restype, load.argtypes = None, [Text]
            load(os.fsencode(self.path.parent))
        return library

    def _check(self) -> None:
        for name, fields in DEFAULTS.items():
            params = getattr(self, name)() if name in vars(self) else None
            for field, known in fields.items() if params else ():
                if (found := int(getattr(params, field))) not in known:
                    problem = f"{name} gives {field} {found}, expected {' or '.join(map(str, known))}"
                    raise LlamaCppError(f"{self.path}: {problem}: its structs are not those known here")

    def _keep(self, level: int, text: bytes, _: Any) -> None:
        if level in (WARNING, ERROR):
            self.log = [*self.log[-1:], text.decode("utf-8", "replace").strip()]

    def failed(self, what: str) -> LlamaCppError:
        """Return an error with the last things that llama.cpp has said."""
        return LlamaCppError("; ".join([what, *self.log]))

    @property
    def system(self) -> str:
        """Return the instruction sets and options that the build says it has: "AVX2, AVX512, ..."."""
        said: bytes = self.llama_print_system_info()
        pairs = (pair.rpartition(":")[2].split("=") for pair in said.decode().split("|") if "=" in pair)
        return ", ".join(name.strip() for name, value in pairs if value.strip() == "1")


def _neighbours(path: Path) -> Iterator[Path]:
    yield from filter(None, (_beside(path, name) for name in NEIGHBOURS))


def _beside(path: Path, name: str) -> Path | None:
    """Return the library with another name beside libllama, with a version behind its name if there is no other."""
    before, llama, behind = path.name.rpartition("llama")
    if not llama or not behind.startswith("."):
        return None
    ending = behind.split(".")[1]
    found = sorted(path.parent.glob(f"{before}{name}.{ending}*"), key=lambda one: len(one.name))
    return found[0] if found else None
