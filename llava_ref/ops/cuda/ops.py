"""Compute on a CUDA device as fast as its memory allows: packed weights, Triton kernels, float16 for many rows.

The letters are those of `ops.protocol`. Whatever is not here is `TorchOps`, float32. A product of up to 8 rows reads
the packed weights and rounds x to two 8-bit terms (2e-5 to 5e-5 of a product's norm); one of more rows is float16
(3e-4); keys and values are float16 (docs/gpu.md has what was measured, and where).
"""

from collections.abc import Callable, Hashable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...gguf.file import TensorView
from ...kernels.triton import gates
from ...kernels.triton.activations import quantise, rms_norm
from ...kernels.triton.attention import BLOCKINGS, AttentionPlan, attention
from ...kernels.triton.rope import rope
from ...kernels.triton.slices import MOST_ROWS
from ..protocol import KV, Activation, Cache, Linear, Norm, Pairs
from ..sees import Sees
from ..step import StepPlan
from ..torch_ops import TorchOps
from ..weight_budget import WeightBudget
from .cache import Slots, StaticCache
from .graph import record
from .groups import Groups
from .matrix import CudaMatrix
from .stepper import CudaStepper, SlotStep
from .stores import FEW, Terms

MOST_HEAD_SIZE, MOST_GROUP = max(BLOCKINGS), MOST_ROWS
"""The largest heads, and the most query heads of a key/value head, that attention's kernels take: larger than those of
any family here. Others are attended to by torch."""


class CudaPlan:
    """What each query sees, as attention's kernel reads it; the mask is drawn only where weights are asked for."""

    def __init__(self, sees: Sees, device: str) -> None:
        self._sees, self._device = sees, device
        self._plans: dict[int, AttentionPlan] = {}

    def of(self, head_size: int) -> AttentionPlan:
        if head_size not in self._plans:
            self._plans[head_size] = AttentionPlan.of(self._sees, head_size, self._device)
        return self._plans[head_size]

    def mask(self) -> Tensor | None:
        mask = self._sees.mask()
        return None if mask is None else torch.tensor(mask, dtype=torch.float32, device=self._device)


class CudaOps(TorchOps):
    """Implement `protocol.Ops` with the kernels. On "cpu" they run in Triton's interpreter, for tests."""

    joined_rows = 1024

    def __init__(self, device: str, threads: int | None, budget: int, dependent_launch: bool = False) -> None:
        """`budget`: bytes of float16 copies of packed weights. `dependent_launch`: let a kernel start before the one
        in front of it has ended (compute capability 9.0 or newer)."""
        super().__init__(device, threads, budget)
        self._terms = Terms(WeightBudget(budget), dependent_launch)
        self._groups, self._slots = Groups(self._terms), Slots(device)
        self._graphs: dict[Hashable, _Recorded] = {}
        self._everything: dict[int, CudaPlan] = {}

    def matrix(self, view: TensorView) -> CudaMatrix:  # type: ignore[override]
        return CudaMatrix(view, self.device, self._terms)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.float().cpu().numpy()

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        return self.linears(x, (w,))[0]

    def linears(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        group, x = self._groups.of(ws), x.contiguous()
        y = group.matvec(quantise(x)) if len(x) <= FEW else group.product(x)
        return group.split(y)

    def layer_norm(self, x: Tensor, w: Norm, eps: float) -> Tensor:
        return torch.nn.functional.layer_norm(x, x.shape[-1:], w.weight, w.bias, eps)

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        return rms_norm(x, gain, eps)

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:
        return rope(x, cos, sin, pairs)

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        return gates.gate(x, None, kind)

    def gated(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        return gates.gate(gate, up, kind)

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> StaticCache:  # type: ignore[override]
        return StaticCache(self._slots.take(n_layer, n_head_kv, head_size), self._slots, limit)

    def plan(self, sees: Sees) -> CudaPlan:  # type: ignore[override]
        """Plan a pass. That of a tower is kept: a recorded graph reads it again."""
        if sees.causal or any(limit is not None for limit in (sees.window, sees.pictures, sees.within)):
            return CudaPlan(sees, self.device)
        n = len(sees.query)
        if n not in self._everything or len(sees.key) != n:
            self._everything[n] = CudaPlan(sees, self.device)
        return self._everything[n]

    def attention(self, q: Tensor, kv: KV, scale: float, plan: CudaPlan) -> Tensor:  # type: ignore[override]
        if q.shape[-1] % 8 or q.shape[-1] > MOST_HEAD_SIZE:
            return super().attention(q, kv, scale, plan.mask())
        return attention(q, kv.keys, kv.values, scale, plan.of(q.shape[-1]))

    def attention_weights(self, q: Tensor, kv: KV, scale: float, plan: CudaPlan) -> Tensor:  # type: ignore[override]
        return super().attention_weights(q, kv, scale, plan.mask())

    def attention_values(self, weights: Tensor, kv: KV) -> Tensor:
        return super().attention_values(weights, kv).float()

    def replay(self, f: Callable[[Tensor], Tensor], x: np.ndarray) -> Tensor:
        if self.device != "cuda":
            return f(self.array(x))
        key = (f, x.shape)
        if key not in self._graphs:
            self._graphs[key] = _Recorded(f, self.array(x))
        return self._graphs[key](x)

    def stepper(self, plan: StepPlan, cache: Cache) -> CudaStepper | None:  # type: ignore[override]
        if plan.head_size > MOST_HEAD_SIZE or plan.head_size % 2 or plan.n_head > MOST_GROUP * plan.n_head_kv:
            return None
        if plan.lags:
            return None
        assert isinstance(cache, StaticCache)
        slot = cache.slot
        if not isinstance(slot.step, SlotStep) or slot.step.plan.embd is not plan.embd:
            slot.step = SlotStep(plan, self._groups, self.device, self._terms.dependent_launch)
        return CudaStepper(slot.step, cache)


class _Recorded:
    """A function's launches for inputs of one shape, recorded at the first call."""

    def __init__(self, f: Callable[[Tensor], Tensor], x: Tensor) -> None:
        self._x = x
        self._graph, self._y = record(lambda: f(x))

    def __call__(self, x: np.ndarray) -> Tensor:
        self._x.copy_(torch.tensor(x))
        self._graph.replay()
        return self._y.clone()
