"""Backends: the operations of `ops.Ops`, once in numpy and once in torch. Neither imports the other."""

from ..errors import ParameterError
from ..ops import Ops


def get_ops(backend: str, device: str, threads: int | None, budget: int) -> Ops:
    """The backend by name: "torch" on "cpu" or "cuda", "numpy" on "cpu".

    `budget`: bytes of float32 weights that may be kept once they are dequantised. ParameterError for what is absent."""
    if backend == "numpy":
        if device != "cpu":
            raise ParameterError("device", repr(device), "the numpy backend runs on 'cpu' only")
        from .numpy_ops import NumpyOps

        return NumpyOps(threads, budget)
    if backend == "torch":
        from .torch_ops import TorchOps

        return TorchOps(device, threads, budget)
    raise ParameterError("backend", repr(backend), "unknown, expected 'torch' or 'numpy'")
