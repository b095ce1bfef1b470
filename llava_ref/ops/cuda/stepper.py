"""Run one token through a whole decoder: seven kernels a layer, recorded once as a CUDA graph.

D width, H query heads, Hkv key/value heads, dh head size, F MLP width, V vocabulary. A layer is: norm and rounding to
8-bit terms; q, k, v; attention with everything around it; the output product on top of the residual; norm and rounding;
gate and up with the activation; down on top of the residual. Where matrices side by side are of different types, there
is a product for each. `forward` of the model is the definition, and the way that is taken whenever somebody watches.
"""

from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from ...kernels.triton import gates, scores
from ...kernels.triton.activations import Activations, quantise, rms_norm_quantise
from ...kernels.triton.decode import Scratch, decode_attention
from ..step import Angles, StepLayer, StepPlan
from .cache import Slot, StaticCache
from .graph import record
from .groups import Group, Groups
from .matrix import store_of

SHORT = 256  # likeliest tokens that come to the host with every step


@dataclass(frozen=True, slots=True)
class _Layer:
    """A layer with its matrices laid side by side."""

    plan: StepLayer
    qkv: Group
    out: Group
    gate_up: Group
    down: Group
    cos: Tensor  # (room, dh / 2)
    sin: Tensor


class _Found:
    """What a step brings to the host, side by side in one piece of memory, so that one copy brings it."""

    def __init__(self, data: Tensor) -> None:
        k = (len(data) - 8) // 12
        words = data[8 * k :].view(torch.int32)
        self.data, self.ids = data, data[: 8 * k].view(torch.int64)  # (k,)
        self.values = words[2:].view(torch.float32)  # (k,)
        self.finite, self.total = words[0:1], words[1:2].view(torch.float32)  # (1,) each


class _Buffers:
    """Arrays between the kernels; the same in every step."""

    def __init__(self, p: StepPlan, device: str) -> None:
        D, V, F = p.norm.shape[0], p.output.weight.shape[0], p.layers[0].gate.weight.shape[0]
        heads, pinned = p.n_head + 2 * p.n_head_kv, device == "cuda"
        self.input_host = torch.zeros(2, dtype=torch.int32, device="cpu", pin_memory=pinned)  # token, position
        self.input = torch.zeros(2, dtype=torch.int32, device=device)
        self.x = torch.zeros((1, D), device=device)
        self.branch = torch.zeros((1, D), device=device)
        self.qkv = torch.zeros((1, heads * p.head_size), device=device)
        self.normed = Activations.empty(1, D, device)
        self.attended = Activations.empty(1, p.n_head * p.head_size, device)
        self.hidden = Activations.empty(1, F, device)
        self.scratch = Scratch.make((p.n_head, p.n_head_kv), p.head_size, device)
        self.logits = torch.zeros((1, V), device=device)
        size = 12 * min(SHORT, V) + 8
        found = self.found = _Found(torch.zeros(size, dtype=torch.uint8, device=device))
        summary = scores.Summary.empty(V, device)
        self.summary = replace(summary, finite=found.finite, total=found.total)
        self.found_host = _Found(torch.zeros(size, dtype=torch.uint8, device="cpu", pin_memory=pinned))


class SlotStep:
    """The step over the memory of one slot. The first step at a place in memory records the graph."""

    def __init__(self, plan: StepPlan, groups: Groups, device: str, dependent_launch: bool) -> None:
        self.plan, self._groups, self._device, self._pdl = plan, groups, device, dependent_launch
        self._buffers = _Buffers(plan, device)
        self._keys: Tensor | None = None  # the memory that the graph was recorded over
        self._layers: tuple[_Layer, ...] = ()
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, slot: Slot, token: int, position: int) -> "DeviceLogits":
        """Run a token at a position that has its place in `slot`."""
        b = self._buffers
        b.input_host[0], b.input_host[1] = token, position
        if self._keys is not slot.keys:
            self._record(slot)
        if self._graph is None:
            self._launch(slot)
        else:
            self._graph.replay()
        if self._device == "cuda":
            torch.cuda.current_stream().synchronize()
        return DeviceLogits(b.found_host, b.logits)

    def _record(self, slot: Slot) -> None:
        """Record a step: what it launches is the same at every position. A first run compiles the kernels."""
        self._keys, self._graph = slot.keys, None
        self._layers = self._laid_out(slot.room)
        if self._device == "cuda":
            self._graph, _ = record(lambda: self._launch(slot))

    def _laid_out(self, room: int) -> tuple[_Layer, ...]:
        tables: dict[Angles, tuple[Tensor, Tensor]] = {}
        for layer in self.plan.layers:
            if layer.angles not in tables:
                cos, sin = layer.angles(np.arange(room))
                tables[layer.angles] = torch.tensor(cos, device=self._device), torch.tensor(sin, device=self._device)
        group = self._groups.of
        return tuple(
            _Layer(
                layer, group((layer.q, layer.k, layer.v)), group((layer.out,)), group((layer.gate, layer.up)),
                group((layer.down,)), *tables[layer.angles],
            )
            for layer in self.plan.layers
        )  # fmt: skip

    def _launch(self, slot: Slot) -> None:
        p, b = self.plan, self._buffers
        b.input.copy_(b.input_host, non_blocking=True)
        store_of(p.embd).rows(b.input[:1], b.x, scale=p.embd_scale)
        behind: Tensor | None = None  # the gain of the norm behind the branch that has yet to be added
        for i, layer in enumerate(self._layers):
            self._norm(layer.plan.attn_norm, behind)
            self._attention(layer, slot.keys[i], slot.values[i])
            behind = self._residual(layer.out, b.attended, layer.plan.post_norms, 0)
            self._norm(layer.plan.ffn_norm, behind)
            self._gated(layer.gate_up)
            behind = self._residual(layer.down, b.hidden, layer.plan.post_norms, 1)
        self._norm(p.norm, behind)
        self._groups.of((p.output,)).matvec(b.normed, b.logits)
        self._summarise()

    def _norm(self, gain: Tensor, behind: Tensor | None) -> None:
        """Normalise and round x; first add the branch, itself normalised, where its sum is still to come."""
        b = self._buffers
        add = None if behind is None else b.branch
        rms_norm_quantise(b.x, gain, self.plan.eps, b.normed, add=add, add_gain=behind, pdl=self._pdl)

    def _attention(self, layer: _Layer, keys: Tensor, values: Tensor) -> None:
        p, b, w = self.plan, self._buffers, layer.plan
        layer.qkv.matvec(b.normed, b.qkv)
        decode_attention(
            b.qkv, keys, values, b.input[1:], layer.cos, layer.sin, b.attended, b.scratch,
            heads=(p.n_head, p.n_head_kv), scale=p.scale, pairs=p.pairs, window=w.window, norms=w.head_norms,
            eps=p.eps, pdl=self._pdl,
        )  # fmt: skip

    def _residual(
        self, group: Group, x: Activations, post_norms: tuple[Tensor, Tensor] | None, which: int
    ) -> Tensor | None:
        """Add a branch to x; or keep it, and return the gain of the norm that stands in front of the sum."""
        b = self._buffers
        if post_norms is None:
            group.matvec(x, b.x, add=b.x)
            return None
        group.matvec(x, b.branch)
        return post_norms[which]

    def _gated(self, group: Group) -> None:
        b, kind = self._buffers, self.plan.activation
        if len(group.products) == 1 and group.products[0].bias is None:
            group.products[0].store.gated(b.normed, kind, b.hidden)
            return
        gate, up = group.split(group.matvec(b.normed))
        quantise(gates.gate(gate, up, kind), b.hidden, pdl=self._pdl)

    def _summarise(self) -> None:
        """Bring what a sampler asks for first to the host."""
        b = self._buffers
        scores.summarise(b.logits, b.summary, pdl=self._pdl)
        torch.topk(b.logits[0], len(b.found.ids), out=(b.found.values, b.found.ids))
        b.found_host.data.copy_(b.found.data, non_blocking=True)


class CudaStepper:
    """Implement `step.Stepper`: the step of a cache's slot, for as long as the cache lives."""

    def __init__(self, step: SlotStep, cache: StaticCache) -> None:
        self._step, self._cache = step, cache

    def step(self, token: int) -> "DeviceLogits":
        cache = self._cache
        cache.slot.reserve(cache.length + 1, cache.limit)
        logits = self._step.run(cache.slot, token, cache.length)
        cache.advance(1)
        return logits


class DeviceLogits:
    """Implement `step.NextLogits`. `numpy.asarray` must come before the next step, which overwrites the logits."""

    def __init__(self, found: _Found, logits: Tensor) -> None:
        """`found` on the host, which is copied; `logits` (1, V) on the device."""
        ids, values = found.ids.numpy(), found.values.numpy()
        order = np.argsort(ids)
        self.finite, self.total = bool(found.finite), float(found.total)
        self.ids, self.values, self._logits = ids[order], values[order], logits

    def __len__(self) -> int:
        return self._logits.shape[1]

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> np.ndarray:
        return self._logits[0].cpu().numpy().astype(dtype or np.float32)
