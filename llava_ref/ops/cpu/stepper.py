"""Run one token of each of a few sequences through a whole decoder by one compiled call.

T sequences that share the step, D width, H query heads, Hkv key/value heads, dh head size, F MLP width, V vocabulary.
A step is a program of the launches that `forward` makes one by one, over arrays that stay where they are; `forward` of
the model is the definition, and gives the same bits. What changes from step to step is read through addresses: the
tokens, the positions, the keys each row sees, and the places of its cache.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ...kernels.cpu import gates, kv, norms, rope, rows
from ...kernels.cpu.attention import attention
from ...kernels.cpu.launch import Launch, Program
from ..arrays import Linear, Matrix
from ..step import Angles, StepLayer, StepPlan
from .cache import CpuCache
from .matrix import matrix_of
from .products import Operand, products

FIRST_ROOM = 1024  # positions whose rotary angles are tabled at first
Stage = Sequence[Launch]


class _Turns:
    """Cosines and sines of every position, (room, dh / 2) each, for each kind of layer."""

    def __init__(self, plan: StepPlan, room: int) -> None:
        self.room, at = room, np.arange(room)
        kinds = {layer.angles for layer in plan.layers}
        self._tables = {angles: tuple(torch.from_numpy(x) for x in angles(at)) for angles in kinds}

    def of(self, angles: Angles) -> tuple[int, int]:
        """Return the addresses of both tables."""
        cos, sin = self._tables[angles]
        return cos.data_ptr(), sin.data_ptr()


class _Arrays:
    """Everything between the kernels for T sequences; the same in every step."""

    def __init__(self, p: StepPlan, T: int) -> None:
        D, V, F = p.norm.shape[0], p.output.weight.shape[0], p.layers[0].gate.weight.shape[0]
        Q, KV = p.n_head * p.head_size, p.n_head_kv * p.head_size
        self.tokens, self.positions, self.turns = (torch.zeros(T, dtype=torch.int64) for _ in range(3))
        self.table = torch.zeros((len(p.layers), T, 3), dtype=torch.int64)
        self.ranges = {w: torch.zeros((T, 2), dtype=torch.int64) for w in {layer.window for layer in p.layers}}
        self.x, self.branch, self.logits = (torch.zeros((T, n)) for n in (D, D, V))
        self.q, self.k, self.v = (torch.zeros((T, n)) for n in (Q, KV, KV))
        self.gate, self.up = (torch.zeros((T, n)) for n in (F, F))
        self.normed, self.attended, self.hidden = (Operand(torch.zeros((T, n))) for n in (D, Q, F))


class StepProgram:
    """The program of a decoder for T sequences."""

    def __init__(self, plan: StepPlan, T: int, turns: _Turns) -> None:
        self.plan, self.arrays, self._T, self._turns = plan, _Arrays(plan, T), T, turns
        self._program = Program(list(self._stages()), keep=(self.arrays, turns))

    def run(self, caches: Sequence[CpuCache], tokens: Sequence[int], threads: int) -> list[np.ndarray]:
        """Run a token of each sequence.  -> logits (V,) each"""
        a, table = self.arrays, self.arrays.table.numpy()
        a.tokens.numpy()[:] = tokens
        a.positions.numpy()[:] = ends = [cache.length for cache in caches]
        a.turns.numpy()[:] = [cache.length - cache.lag for cache in caches]
        for t, cache in enumerate(caches):
            table[:, t] = cache.table
        for window, ranges in a.ranges.items():
            ranges.numpy()[:] = [(0 if window is None else max(0, end + 1 - window), end + 1) for end in ends]
        self._program.run(threads)
        return [row.copy() for row in a.logits.numpy()]

    def _stages(self) -> Iterator[Stage]:
        p, a = self.plan, self.arrays
        embd = matrix_of(p.embd)
        ids = a.tokens.data_ptr()
        yield [rows.rows(embd.type, embd.address, embd.K, ids, self._T, a.x.data_ptr(), p.embd_scale)]
        for i, layer in enumerate(p.layers):
            yield [self._rms_norm(a.x, layer.attn_norm, a.normed.x)]
            yield from self._attention(i, layer)
            yield from self._residual(layer.out, a.attended, layer, 0)
            yield [self._rms_norm(a.x, layer.ffn_norm, a.normed.x)]
            yield from products(a.normed, (layer.gate, a.gate), (layer.up, a.up))
            yield [self._gate()]
            yield from self._residual(layer.down, a.hidden, layer, 1)
        yield [self._rms_norm(a.x, p.norm, a.normed.x)]
        yield from products(a.normed, (p.output, a.logits))

    def _rms_norm(self, x: Tensor, gain: Tensor, out: Tensor) -> Launch:
        n, width = x.numel(), len(gain)
        return norms.rms_norm(x.data_ptr(), gain.data_ptr(), out.data_ptr(), n // width, width, self.plan.eps)

    def _attention(self, i: int, w: StepLayer) -> Iterator[Stage]:
        p, a, T = self.plan, self.arrays, self._T
        yield from products(a.normed, (w.q, a.q), (w.k, a.k), (w.v, a.v))
        if w.head_norms is not None:
            yield [self._rms_norm(y, gain, y) for y, gain in zip((a.q, a.k), w.head_norms, strict=True)]
        yield [self._rope(a.q, p.n_head, w), self._rope(a.k, p.n_head_kv, w)]
        table, positions = a.table[i].data_ptr(), a.positions.data_ptr()
        yield [kv.append(a.k.data_ptr(), a.v.data_ptr(), table, positions, T, p.n_head_kv, p.head_size)]
        addresses = (a.q.data_ptr(), table, a.ranges[w.window].data_ptr(), a.attended.x.data_ptr())
        yield [attention(*addresses, T, p.n_head, p.n_head_kv, p.head_size, p.scale)]

    def _rope(self, x: Tensor, n_head: int, w: StepLayer) -> Launch:
        at, p = x.data_ptr(), self.plan
        turns = self.arrays.turns.data_ptr()
        return rope.rope(at, at, *self._turns.of(w.angles), turns, self._T, n_head, p.head_size, p.pairs)

    def _gate(self) -> Launch:
        a = self.arrays
        addresses = (a.gate.data_ptr(), a.up.data_ptr(), a.hidden.x.data_ptr())
        return gates.gate(*addresses, a.gate.numel(), self.plan.activation)

    def _residual(self, w: Linear, x: Operand, layer: StepLayer, which: int) -> Iterator[Stage]:
        """Add a branch to x, itself normalised where the decoder does so."""
        a = self.arrays
        if layer.post_norms is None:
            yield from products(x, (w, a.x), add=a.x)
            return
        yield from products(x, (w, a.branch))
        yield [self._rms_norm(a.branch, layer.post_norms[which], a.branch)]
        yield [norms.add(a.x.data_ptr(), a.branch.data_ptr(), a.x.data_ptr(), a.x.numel())]


class Steps:
    """The steps of a decoder, one for each number of sequences, made when it is first wanted."""

    def __init__(self, plan: StepPlan, threads: int) -> None:
        self.plan, self._threads = plan, threads
        self._turns, self._made = _Turns(plan, 0), dict[int, StepProgram]()

    def run(self, caches: Sequence[CpuCache], tokens: Sequence[int]) -> list[np.ndarray]:
        """Run a token of each sequence, whose caches then hold it.  -> logits (V,) each"""
        for cache in caches:
            cache.reserve(cache.length + 1)
        logits = self._step(len(caches), max(cache.length for cache in caches) + 1).run(caches, tokens, self._threads)
        for cache in caches:
            cache.advance(1)
        return logits

    def _step(self, T: int, end: int) -> StepProgram:
        if end > self._turns.room:
            self._turns = _Turns(self.plan, max(FIRST_ROOM, end, 2 * self._turns.room))
            self._made.clear()
        if T not in self._made:
            self._made[T] = StepProgram(self.plan, T, self._turns)
        return self._made[T]


class CpuStepper:
    """Implement `step.Stepper` over a cache."""

    def __init__(self, steps: Steps, cache: CpuCache) -> None:
        self.steps, self.cache = steps, cache

    def step(self, token: int) -> np.ndarray:
        return self.steps.run([self.cache], [token])[0]


def matrices(plan: StepPlan) -> Iterator[Matrix]:
    """Yield every matrix of a decoder."""
    yield from (plan.embd, plan.output.weight)
    for w in plan.layers:
        yield from (linear.weight for linear in (w.q, w.k, w.v, w.out, w.gate, w.up, w.down))
