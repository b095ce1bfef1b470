"""Compute the operations in torch, float32, on any device; each is its definition in kernels/reference.py."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from ..errors import ParameterError
from ..gguf.file import TensorView
from ..kernels import reference
from .kv import GrowingCache
from .protocol import KV, Activation, Cache, Linear, Norm
from .sees import Sees
from .step import StepPlan, one_by_one
from .threads import processors, worth
from .torch_quants import decode, dequantize, raw
from .weight_budget import Dequantised, WeightBudget

ACTIVATIONS = {
    "gelu_erf": reference.gelu_erf,
    "gelu_tanh": reference.gelu_tanh,
    "gelu_quick": reference.gelu_quick,
    "silu": reference.silu,
}
MOST = min(processors(), torch.get_num_threads())
"""Threads that were allowed when the first model was loaded: OMP_NUM_THREADS and torch.set_num_threads count."""


class TorchOps:
    """Implement `protocol.Ops` with torch. Weights are dequantised on the device they are used on."""

    name = "torch"
    joined_rows = 0
    together = 1
    step_together = staticmethod(one_by_one)

    def __init__(self, device: str, threads: int | None, budget: int) -> None:
        if device not in ("cpu", "cuda"):
            raise ParameterError("device", repr(device), "unknown, expected 'cpu' or 'cuda'")
        if device == "cuda" and not torch.cuda.is_available():
            raise ParameterError("device", "'cuda'", "torch finds no CUDA device here")
        torch.set_float32_matmul_precision("highest")  # no TF32
        self.device = device
        self._budget = WeightBudget(budget)
        self._threads = threads

    def kernels(self) -> str:
        return f"torch {torch.__version__} on {self.device}, float32"

    @contextmanager
    def running(self, rows: int, weights: int) -> Iterator[None]:
        before = torch.get_num_threads()
        torch.set_num_threads(self._threads or worth(rows, weights, MOST))
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def matrix(self, view: TensorView) -> Dequantised[Tensor]:
        blocks = raw(view, self.device).reshape(view.shape[0], -1)

        def rows(_: TensorView, ids: Sequence[int]) -> Tensor:
            return decode(blocks[torch.tensor(ids, dtype=torch.int64, device=self.device)], view.type)

        return Dequantised(view, lambda _: decode(blocks, view.type), rows, reference.linear, self._budget)

    def vector(self, view: TensorView) -> Tensor:
        return dequantize(view, self.device)

    def array(self, x: np.ndarray | Tensor) -> Tensor:
        if isinstance(x, Tensor):  # rows of a picture that a gradient goes through
            return x
        # torch keeps numpy's order of axes, and kernels read rows
        return torch.tensor(np.ascontiguousarray(x), dtype=torch.float32, device=self.device)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.detach().cpu().numpy()

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        y: Tensor = w.weight.product(x)
        return y if w.bias is None else y + w.bias

    def linears(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        return tuple(self.linear(x, w) for w in ws)

    def patches(self, x: Tensor, w: Linear) -> Tensor:
        return self.linear(reference.squares(x, w.weight.shape[-1]), w)

    def depthwise(self, x: Tensor, kernel: Tensor, places: np.ndarray) -> Tensor:
        return reference.depthwise(x, kernel, torch.from_numpy(places).to(x.device))

    def layer_norm(self, x: Tensor, w: Norm, eps: float) -> Tensor:
        return reference.layer_norm(x, w.weight, w.bias, eps)

    rms_norm = staticmethod(reference.rms_norm)
    rope = staticmethod(reference.rope)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        return ACTIVATIONS[kind](x)

    def clamp(self, x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    def gated(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        return self.activation(gate, kind) * up

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> GrowingCache:
        return GrowingCache(n_layer, n_head_kv, head_size, limit, lambda shape: torch.zeros(shape, device=self.device))

    def plan(self, sees: Sees) -> Tensor | None:
        mask = sees.mask()
        return None if mask is None else self.array(mask)

    def attention(self, q: Tensor, kv: KV, scale: float, plan: Tensor | None) -> Tensor:
        return reference.attention(q, kv.keys, kv.values, scale, plan)

    def attention_weights(self, q: Tensor, kv: KV, scale: float, plan: Tensor | None) -> Tensor:
        return reference.attention_weights(q, kv.keys, scale, plan)

    def attention_values(self, weights: Tensor, kv: KV) -> Tensor:
        return reference.attention_values(weights, kv.values)

    def concat(self, rows: Sequence[Tensor]) -> Tensor:
        return torch.cat(tuple(rows))

    def all_finite(self, x: Tensor) -> bool:
        return bool(torch.isfinite(x).all())

    def replay(self, f: Callable[[Tensor], Tensor], x: np.ndarray) -> Tensor:
        return f(self.array(x))

    def stepper(self, plan: StepPlan, cache: Cache) -> None:
        return None
