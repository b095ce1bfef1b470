"""Choose a backend: the operations of `protocol.Ops`, in numpy or in torch, neither of which imports the other; and
over either of them, the arithmetic of ggml."""

from ..errors import ParameterError
from ..extras import Extra, missing
from .protocol import CacheType, Ops
from .threads import sleeping_openmp

PRECISIONS = ("exact", "fast", "ggml")


def get_ops(
    backend: str,
    device: str,
    threads: int | None,
    budget: int,
    precision: str = "exact",
    *,
    kv_cache: CacheType = "f32",
    flash_attention: bool = False,
) -> Ops:
    """Return the backend: "torch" on "cpu" or "cuda", "numpy" on "cpu".

    `threads`: that many for every pass; None: as many as its size is worth (`threads.worth`), at most what is allowed.
    `budget`: bytes of weights that may be kept converted: as float32, in "fast" on a CUDA device as float16.
    `precision`: "exact" is float32 throughout; "fast" is the fastest right answer of the device; "ggml" rounds as
    ggml's CPU backend does, where `kv_cache` and `flash_attention` say how its attention goes. Raises ParameterError
    for what is absent."""
    if precision not in PRECISIONS:
        raise ParameterError("precision", repr(precision), f"unknown, expected one of {', '.join(PRECISIONS)}")
    if precision == "fast":
        return _fast(backend, device, threads, budget)
    ops = _backend(backend, device, threads, budget)
    if precision == "exact":
        return ops
    from .ggml import ops as ggml

    return ggml.over(ops, kv_cache, flash_attention)


def _fast(backend: str, device: str, threads: int | None, budget: int) -> Ops:
    if backend != "torch":
        raise ParameterError("precision", "'fast'", f"needs backend torch, not {backend}")
    extra: Extra = "fast" if device == "cpu" else "gpu"
    try:
        with sleeping_openmp():
            if device == "cpu":
                from .cpu.ops import CpuOps

                return CpuOps(threads, budget)
            from .cuda.ops import CudaOps
    except ModuleNotFoundError as error:
        if error.name == "torch":
            raise _no_torch(error) from None
        raise ParameterError("precision", "'fast'", f"{missing(extra)} ({error})") from None
    except ValueError as error:  # LLAVA_REF_SIMD names no level
        raise ParameterError("precision", "'fast'", str(error)) from None
    return CudaOps(device, threads, budget)


def _backend(backend: str, device: str, threads: int | None, budget: int) -> Ops:
    if backend == "numpy":
        if device != "cpu":
            raise ParameterError("device", repr(device), "the numpy backend runs on 'cpu' only")
        from .numpy_ops import NumpyOps

        return NumpyOps(threads, budget)
    if backend == "torch":
        try:
            with sleeping_openmp():
                from .torch_ops import TorchOps
        except ImportError as error:
            raise _no_torch(error) from None
        return TorchOps(device, threads, budget)
    raise ParameterError("backend", repr(backend), "unknown, expected 'torch' or 'numpy'")


def arithmetic(backend: str) -> dict[str, object]:
    """Return what the last bits of a backend's float32 products on a processor depend on, besides their threads."""
    if backend == "numpy":
        from .numpy_ops import most

        return {"threads": f"at most {most()}"}
    with sleeping_openmp():
        import torch

        from .torch_ops import MOST

    return {"threads": f"at most {MOST}", "instructions": torch.backends.cpu.get_cpu_capability()}


def _no_torch(error: ImportError) -> ParameterError:
    return ParameterError("backend", "'torch'", f"{error}; 'numpy' needs no torch")
