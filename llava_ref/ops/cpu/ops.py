"""Compute on a processor as fast as its memory allows: the file's own blocks, compiled kernels, a cache of float16.

The letters are those of `ops.protocol`. Whatever is not here is `TorchOps`, float32. A product of up to 8 rows reads
the file's blocks, and x rounded to 16 bits; one of more rows is what `kernels/cpu/product.py` chose for this machine.
docs/cpu.md has what was measured.
"""

from collections import Counter
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from ...gguf.file import TensorView
from ...kernels.cpu import gates, norms, processor, rope
from ...kernels.cpu.attention import attention
from ...kernels.cpu.launch import Launch, run
from ...kernels.cpu.matvec import FEW, SUPPORTED
from ...kernels.cpu.product import chosen
from ...kernels.cpu.prompt_attention import prompt_attention
from ..arrays import KV, Activation, Cache, Linear, Matrix, Norm, Pairs
from ..sees import Sees
from ..step import Stepper, StepPlan
from ..torch_ops import MOST, TorchOps
from .cache import CpuCache
from .matrix import CpuMatrix
from .products import BlockProducts
from .stepper import CpuStepper, Steps, matrices


class CpuPlan:
    """Which keys each query sees: a range of them, or a mask where it is none or somebody asks for weights."""

    def __init__(self, sees: Sees) -> None:
        self._sees = sees

    @cached_property
    def ranges(self) -> Tensor | None:
        """Return the first and the behind-last key of each query, (T, 2) int64; None where it sees no range."""
        try:
            return torch.from_numpy(np.ascontiguousarray(self._sees.ranges(), np.int64))
        except ValueError:
            return None

    def mask(self) -> Tensor | None:
        mask = self._sees.mask()
        return None if mask is None else torch.tensor(mask, dtype=torch.float32)


class CpuOps(TorchOps):
    """Implement `protocol.Ops` with the kernels of `kernels/cpu`."""

    together = FEW

    def __init__(self, threads: int | None, budget: int) -> None:
        """`budget`: bytes of float32 kept of matrices whose type no kernel reads."""
        super().__init__("cpu", threads, budget)
        self._most = threads or MOST
        self._products = BlockProducts(self._most)
        self._steps: Steps | None = None
        self._types: Counter[str] = Counter()

    def kernels(self) -> str:
        read = [kind for kind in self._types if kind in SUPPORTED]
        ways = [f"{way} for {', '.join(kinds)}" for way, kinds in _by_way(read).items()]
        left = ", ".join(f"{kind} ({n} matrices)" for kind, n in self._types.items() if kind not in SUPPORTED)
        fallen = f"; no kernel, so dequantised at every use: {left}" if left else ""
        few = f"rows up to {FEW}: {', '.join(read)}"
        return f"{processor.SET} on {self._most} threads; {few}; more: {'; '.join(ways)}{fallen}"

    def matrix(self, view: TensorView) -> Matrix:  # type: ignore[override]
        self._types[view.type] += 1
        return CpuMatrix(view, self._products.linears) if view.type in SUPPORTED else super().matrix(view)

    def numpy(self, x: Tensor) -> np.ndarray:
        return x.float().numpy()

    def linear(self, x: Tensor, w: Linear) -> Tensor:
        return self.linears(x, (w,))[0]

    def linears(self, x: Tensor, ws: Sequence[Linear]) -> tuple[Tensor, ...]:
        if all(isinstance(w.weight, CpuMatrix) for w in ws):
            return self._products.linears(x, ws)
        return tuple(TorchOps.linear(self, x, w) for w in ws)

    def layer_norm(self, x: Tensor, w: Norm, eps: float) -> Tensor:
        x, out, bias = x.contiguous(), torch.empty(x.shape), 0 if w.bias is None else w.bias.data_ptr()
        self._run(norms.layer_norm(x.data_ptr(), w.weight.data_ptr(), bias, out.data_ptr(), len(x), x.shape[1], eps))
        return out

    def rms_norm(self, x: Tensor, gain: Tensor, eps: float) -> Tensor:
        x, out, width = x.contiguous(), torch.empty(x.shape), len(gain)
        rows = x.numel() // width
        self._run(norms.rms_norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), rows, width, eps))
        return out

    def rope(self, x: Tensor, cos: Tensor, sin: Tensor, pairs: Pairs) -> Tensor:
        (T, H, dh), x = x.shape, x.contiguous()
        out, positions = torch.empty(x.shape), torch.arange(T)
        addresses = (y.data_ptr() for y in (x, out, cos, sin, positions))
        self._run(rope.rope(*addresses, T, H, dh, pairs))
        return out

    def activation(self, x: Tensor, kind: Activation) -> Tensor:
        return self._gate(x, None, kind)

    def gated(self, gate: Tensor, up: Tensor, kind: Activation) -> Tensor:
        return self._gate(gate, up, kind)

    def cache(self, n_layer: int, n_head_kv: int, head_size: int, limit: int) -> CpuCache:  # type: ignore[override]
        return CpuCache(n_layer, n_head_kv, head_size, limit)

    def plan(self, sees: Sees) -> CpuPlan:  # type: ignore[override]
        return CpuPlan(sees)

    def attention(self, q: Tensor, kv: KV, scale: float, plan: CpuPlan) -> Tensor:  # type: ignore[override]
        if plan.ranges is None:
            return super().attention(q, kv, scale, plan.mask()).float()
        if len(q) > FEW or kv.type != "f16":
            return prompt_attention(q, kv.keys, kv.values, plan.ranges, scale)
        (T, H, dh), q = q.shape, q.contiguous()
        out, head = torch.empty((T, H * dh)), kv.keys.stride(1) * kv.keys.element_size()
        table = torch.tensor([[kv.keys.data_ptr(), kv.values.data_ptr(), head]] * T)
        addresses = (y.data_ptr() for y in (q, table, plan.ranges, out))
        self._run(attention(*addresses, T, H, kv.keys.shape[1], dh, scale))
        return out

    def attention_weights(self, q: Tensor, kv: KV, scale: float, plan: CpuPlan) -> Tensor:  # type: ignore[override]
        return super().attention_weights(q, kv, scale, plan.mask())

    def attention_values(self, weights: Tensor, kv: KV) -> Tensor:
        return super().attention_values(weights, kv).float()

    def stepper(self, plan: StepPlan, cache: Cache) -> CpuStepper | None:  # type: ignore[override]
        if not all(isinstance(w, CpuMatrix) for w in matrices(plan)):
            return None
        if self._steps is None or self._steps.plan.embd is not plan.embd:
            self._steps = Steps(plan, self._most)
        assert isinstance(cache, CpuCache)
        return CpuStepper(self._steps, cache)

    def step_together(self, steppers: Sequence[Stepper], tokens: Sequence[int]) -> list[np.ndarray]:
        ours = [stepper for stepper in steppers if isinstance(stepper, CpuStepper)]
        return ours[0].steps.run([stepper.cache for stepper in ours], tokens)

    def _gate(self, gate: Tensor, up: Tensor | None, kind: Activation) -> Tensor:
        gate, up = gate.contiguous(), None if up is None else up.contiguous()
        out = torch.empty(gate.shape)
        self._run(gates.gate(gate.data_ptr(), 0 if up is None else up.data_ptr(), out.data_ptr(), out.numel(), kind))
        return out

    def _run(self, launch: Launch) -> None:
        run(launch, threads=self._most)


def _by_way(kinds: Sequence[str]) -> dict[str, list[str]]:
    """Return the types that each way of multiplying many rows is for."""
    ways: dict[str, list[str]] = {}
    for kind in kinds:
        ways.setdefault(chosen(kind), []).append(kind)
    return ways
