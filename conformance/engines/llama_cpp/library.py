"""Open llama.cpp's C API in this process: the shared object of `xllamacpp`, definitions of `llama-cpp-py-sync`.

Two packages because neither has both: `xllamacpp` exports the symbols from one object that runs on glibc 2.17, and
`llama-cpp-py-sync` has cffi definitions generated from the headers. They are builds b11549 and b11548, so the defaults
that structs come back with are compared with known ones before anything is trusted.
"""

from importlib import import_module
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.extras import missing

from .stages import with_axes

# ggml.h: the fields of ggml_tensor that are read here, GGML_MAX_DIMS 4, GGML_MAX_OP_PARAMS 64, GGML_MAX_SRC 10.
TENSOR = """
struct tensor {
    int type; void * buffer; int64_t ne[4]; size_t nb[4]; int op; int32_t op_params[16]; int32_t flags;
    struct tensor * src[10]; struct tensor * view_src; size_t view_offs; void * data; char name[64]; ...;
};
const char * ggml_op_name(int op);
"""
NUMPY = {0: np.float32, 1: np.float16, 24: np.int8, 26: np.int32, 27: np.int64}  # ggml.h, enum ggml_type; 30 is BF16
BF16 = 30
EXPECTED: dict[str, dict[str, float]] = {  # llama.cpp b11549, what the *_default_params functions return
    "model": {"n_gpu_layers": -1, "vocab_only": False, "use_extra_bufts": True, "no_alloc": False},
    "context": {
        "n_ctx": 512,
        "n_batch": 2048,
        "n_ubatch": 512,
        "n_threads": 4,
        "flash_attn_type": -1,
        "yarn_beta_slow": -1.0,
        "type_k": 1,
        "type_v": 1,
        "offload_kqv": True,
        "swa_full": True,
    },
    "mtmd": {"use_gpu": True, "n_threads": 4, "flash_attn_type": -1, "warmup": True, "batch_max_tokens": 1024},
}


class LlamaLibrary:
    """Give `ffi`, `lib` (llama_*, mtmd_*) and access to ggml tensors. Raises RuntimeError if structs differ."""

    def __init__(self) -> None:
        path = shared_object()
        self.ffi: Any = import_module("llama_cpp_py_sync._cffi_bindings").get_ffi()
        self.lib = self.ffi.dlopen(str(path))
        self._tensors: Any = import_module("cffi").FFI()
        self._tensors.cdef(TENSOR.replace("...;", "void * extra; char padding[8];"))
        self._ggml = self._tensors.dlopen(str(path))
        self.defaults = {
            "model": self.lib.llama_model_default_params(),
            "context": self.lib.llama_context_default_params(),
            "mtmd": self.lib.mtmd_context_params_default(),
        }
        self._check()
        self.log: list[str] = []
        self._callback = self.ffi.callback("ggml_log_callback", self._keep)
        for setter in (self.lib.llama_log_set, self.lib.mtmd_log_set, self.lib.mtmd_helper_log_set):
            setter(self._callback, self.ffi.NULL)

    def _check(self) -> None:
        for struct, fields in EXPECTED.items():
            for field, want in fields.items():
                found = getattr(self.defaults[struct], field)
                if found != want:
                    problem = f"the default of {struct}.{field} is {found!r}, expected {want!r}"
                    raise RuntimeError(f"{problem}: llama-cpp-py-sync's definitions do not fit xllamacpp's build")

    def _keep(self, level: int, text: Any, _: Any) -> None:
        if level in (3, 4):  # GGML_LOG_LEVEL_WARN, GGML_LOG_LEVEL_ERROR
            self.log.append(self.ffi.string(text).decode("utf-8", "replace").strip())

    @property
    def version(self) -> dict[str, str]:
        """Return the packages' versions, which end in llama.cpp's build number (xllamacpp compiles LLAMA_COMMIT as
        "unknown"), and the instruction sets that the library uses."""
        packages = {name: version(name) for name in ("xllamacpp", "llama-cpp-py-sync")}
        return {**packages, "system": self.ffi.string(self.lib.llama_print_system_info()).decode().strip(" |")}

    def tensor(self, pointer: Any) -> Any:
        """Cast a `struct ggml_tensor *` of the callback to one whose fields can be read."""
        return self._tensors.cast("struct tensor *", int(self.ffi.cast("uintptr_t", pointer)))

    def name(self, tensor: Any) -> str:
        return bytes(self._tensors.string(tensor.name)).decode("utf-8", "replace")

    def op(self, tensor: Any) -> str:
        """Return the operation that computed a tensor: MUL_MAT, ADD, RESHAPE, ..."""
        return bytes(self._tensors.string(self._ggml.ggml_op_name(tensor.op))).decode()

    def sources(self, tensor: Any) -> tuple[str, ...]:
        """Return the names of the tensors it was computed from."""
        return tuple(self.name(source) for source in tensor.src if source)

    def array(self, tensor: Any, axes: int = 2) -> np.ndarray:
        """Copy a tensor's values: float32 or integers, in torch order, with at least `axes` axes."""
        ne, nb = list(tensor.ne), list(tensor.nb)
        dtype = np.dtype(np.uint16 if tensor.type == BF16 else NUMPY[tensor.type])
        extent = sum((n - 1) * stride for n, stride in zip(ne, nb, strict=True)) + dtype.itemsize
        raw = np.frombuffer(self._tensors.buffer(tensor.data, extent), np.uint8)
        view = np.ndarray(tuple(ne[::-1]), dtype, raw, strides=tuple(nb[::-1])).copy()
        if tensor.type == BF16:
            view = (view.astype(np.uint32) << 16).view(np.float32)
        elif dtype == np.float16:
            view = view.astype(np.float32)
        return with_axes(view, axes)


def shared_object() -> Path:
    """Find xllamacpp's library. Raises ModuleNotFoundError if the package is not installed."""
    spec = find_spec("xllamacpp")
    folders = spec.submodule_search_locations if spec else None
    if not folders:
        raise ModuleNotFoundError(missing("conformance"))
    return next(Path(folders[0]).glob("xllamacpp*.so"))
