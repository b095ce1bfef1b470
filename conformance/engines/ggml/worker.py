"""Run single operations of ggml's CPU backend through its C API, in a separate process because ggml may abort.

`python -m llava_ref.conformance.engines.ggml.worker FOLDER FIRST` reads `<i>.json`, an operation with its numbers, and
`<i>.npz`, its arrays, for i from FIRST on. It writes `<i>.result.npy` as soon as a result is known, or `<i>.failed`
with a reason. `operations` documents the operations. Names and signatures are those of ggml.h and ggml-cpu.h, llama.cpp
b11549. ggml lists the fastest axis first, numpy last: every shape is reversed between them.
"""

import json
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from llava_ref.gguf.types import TYPES

from ..llama_cpp.library import TENSOR, shared_object

API = """
typedef struct tensor * T;
typedef void * C;
struct init { size_t size; void * buffer; bool no_alloc; };
C ggml_init(struct init params);
void ggml_free(C context);
void ggml_cpu_init(void);
T ggml_new_tensor(C context, int type, int n_axes, const int64_t * ne);
void * ggml_new_graph(C context);
void ggml_build_forward_expand(void * graph, T tensor);
int ggml_graph_compute_with_ctx(C context, void * graph, int n_threads);
T ggml_mul_mat(C context, T weights, T x);
T ggml_conv_2d(C context, T kernel, T pixels, int s0, int s1, int p0, int p1, int d0, int d1);
T ggml_gelu(C context, T x);
T ggml_gelu_quick(C context, T x);
T ggml_gelu_erf(C context, T x);
T ggml_silu(C context, T x);
T ggml_soft_max_ext(C context, T x, T mask, float scale, float max_bias);
T ggml_flash_attn_ext(C context, T q, T k, T v, T mask, float scale, float max_bias, float softcap);
struct traits {
    void (*from_float)(const float * x, void * y, int64_t n); void * vec_dot; int vec_dot_type; int64_t n_rows;
};
const struct traits * ggml_get_type_traits_cpu(int type);
"""
MEMORY = 256 << 20  # bytes for the tensors of one operation
ACTIVATION_BYTES = {"F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q8_1": (32, 36), "Q8_K": (256, 292)}
ACTIVATION_ID = {"F16": 1, "BF16": 30, "Q8_0": 8, "Q8_1": 9, "Q8_K": 15}  # ggml.h, enum ggml_type
Job = dict[str, Any]
Arrays = dict[str, np.ndarray]


class Ggml:
    """Runs operations: each method takes the numbers and arrays of a job and returns the result.

    Methods raise RuntimeError if ggml lacks the operation."""

    def __init__(self) -> None:
        self.ffi: Any = import_module("cffi").FFI()
        self.ffi.cdef(TENSOR.replace("...;", "void * extra; char padding[8];") + API)
        self.lib = self.ffi.dlopen(str(shared_object()))
        self.lib.ggml_cpu_init()  # fills the GELU tables

    def kernels(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Return (n, 2): the id of each type that has a dot product, and of the type activations are rounded to."""
        kernels = [(block.id, self.lib.ggml_get_type_traits_cpu(block.id)) for block in TYPES.values()]
        return np.array([(id_, traits.vec_dot_type) for id_, traits in kernels if traits.vec_dot != self.ffi.NULL])

    def round(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Round rows (T, K) to activation type `kind`: (T, bytes)."""
        x = np.ascontiguousarray(arrays["x"], np.float32)
        weights, size = ACTIVATION_BYTES[job["kind"]]
        out = np.zeros((len(x), x.shape[1] // weights * size), np.uint8)
        traits = self.lib.ggml_get_type_traits_cpu(ACTIVATION_ID[job["kind"]])
        for row, target in zip(x, out, strict=True):
            source = self.ffi.cast("float *", self.ffi.from_buffer(row))
            traits.from_float(source, self.ffi.from_buffer(target), len(row))
        return out

    def mul_mat(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Multiply x (T, K) by weights (N, K) in the bytes of their type `kind`: (T, N)."""
        block, K = TYPES[job["kind"]], arrays["x"].shape[1]
        if self.lib.ggml_get_type_traits_cpu(block.id).vec_dot == self.ffi.NULL:
            raise RuntimeError(f"ggml's CPU backend has no dot product for {block.name}")
        with Graph(self) as graph:
            weights = graph.tensor(block.id, (len(arrays["weights"]), K), arrays["weights"])
            return graph.compute(self.lib.ggml_mul_mat(graph.context, weights, graph.float32(arrays["x"])), 2)

    def conv_2d(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Convolve pixels (3, Y, X) with a kernel (D, 3, P, P) float16 or float32, stride P: (D, Y / P, X / P)."""
        kernel, P = arrays["kernel"], arrays["kernel"].shape[-1]
        with Graph(self) as graph:
            weights = graph.tensor(1 if kernel.dtype == np.float16 else 0, kernel.shape, kernel)
            pixels = graph.float32(arrays["pixels"])
            return graph.compute(self.lib.ggml_conv_2d(graph.context, weights, pixels, P, P, 0, 0, 1, 1), 3)

    def activation(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Apply `kind`, gelu, gelu_quick, gelu_erf or silu, to every number of x."""
        with Graph(self) as graph:
            result = getattr(self.lib, f"ggml_{job['kind']}")(graph.context, graph.float32(arrays["x"]))
            return graph.compute(result, arrays["x"].ndim)

    def soft_max(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Compute softmax(x * scale + mask), x (H, T, S), mask (T, S) float16: (H, T, S)."""
        with Graph(self) as graph:
            x, mask = graph.float32(arrays["x"]), graph.tensor(1, arrays["mask"].shape, arrays["mask"])
            return graph.compute(self.lib.ggml_soft_max_ext(graph.context, x, mask, job["scale"], 0.0), 3)

    def flash_attention(self, job: Job, arrays: Arrays) -> np.ndarray:
        """Attend: q (H, T, dh), k and v (Hkv, S, dh) of float16 or float32, mask (T, S) float16 or none: (T, H, dh)."""
        with Graph(self) as graph:
            kind = 1 if arrays["k"].dtype == np.float16 else 0
            q, k, v = graph.float32(arrays["q"]), *(graph.tensor(kind, arrays[n].shape, arrays[n]) for n in "kv")
            mask = graph.tensor(1, arrays["mask"].shape, arrays["mask"]) if "mask" in arrays else self.ffi.NULL
            result = self.lib.ggml_flash_attn_ext(graph.context, q, k, v, mask, job["scale"], 0.0, 0.0)
            return graph.compute(result, 3)


class Graph:
    """Holds the tensors of one operation in a ggml context of its own."""

    def __init__(self, ggml: Ggml) -> None:
        self._ffi, self._lib = ggml.ffi, ggml.lib

    def __enter__(self) -> "Graph":
        self.context = self._lib.ggml_init({"size": MEMORY, "buffer": self._ffi.NULL, "no_alloc": False})
        return self

    def __exit__(self, *_: object) -> None:
        self._lib.ggml_free(self.context)

    def float32(self, x: np.ndarray) -> Any:
        """Make a float32 tensor from an array."""
        return self.tensor(0, x.shape, x.astype(np.float32))

    def tensor(self, kind: int, shape: tuple[int, ...], data: np.ndarray) -> Any:
        """Make a tensor of `shape`, in torch's order of axes, from the bytes of `data`."""
        tensor = self._lib.ggml_new_tensor(self.context, kind, len(shape), list(shape[::-1]))
        data = np.ascontiguousarray(data)
        size = tensor.nb[3] * tensor.ne[3]
        if size != data.nbytes:
            raise RuntimeError(f"{data.nbytes} bytes for a tensor of {size}")
        self._ffi.memmove(tensor.data, self._ffi.from_buffer(data), size)
        return tensor

    def compute(self, result: Any, n_axes: int) -> np.ndarray:
        """Compute a tensor on one thread; return it as float32 with `n_axes` axes."""
        graph = self._lib.ggml_new_graph(self.context)
        self._lib.ggml_build_forward_expand(graph, result)
        status = self._lib.ggml_graph_compute_with_ctx(self.context, graph, 1)
        if status:
            raise RuntimeError(f"ggml_graph_compute returned {status}")
        shape = tuple(result.ne)[:n_axes][::-1]
        raw = self._ffi.buffer(result.data, 4 * int(np.prod(shape)))
        return np.frombuffer(raw, np.float32).reshape(shape).copy()


def main(folder: Path, first: int) -> None:
    """Run the operations in `folder` from `first` on."""
    ggml = Ggml()
    kinds: dict[str, Callable[[Job, Arrays], np.ndarray]] = {
        "kernels": ggml.kernels,
        "round": ggml.round,
        "mul_mat": ggml.mul_mat,
        "conv_2d": ggml.conv_2d,
        "activation": ggml.activation,
        "soft_max": ggml.soft_max,
        "flash_attention": ggml.flash_attention,
    }
    for i in range(first, len(list(folder.glob("*.json")))):
        job = json.loads((folder / f"{i}.json").read_text())
        with np.load(folder / f"{i}.npz") as arrays:
            inputs = dict(arrays)
        try:
            np.save(folder / f"{i}.result.npy", kinds[job["op"]](job, inputs))
        except RuntimeError as error:
            (folder / f"{i}.failed").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
