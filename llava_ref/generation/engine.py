"""Both towers over one backend: pixels -> image rows, rows and token ids -> logits. No text, no files but GGUF.

N patches, D decoder width, V vocabulary, T positions fed.
"""

import os
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import accumulate, pairwise

import numpy as np

from ..errors import NumericsError, PairError, ParameterError, PromptError
from ..gguf.file import GGUFFile
from ..models import clip as vision
from ..models import llama as decoder
from ..models import projectors as projector
from ..models import stages
from ..models.config import read_text, read_vision
from ..models.kv import KVCache
from ..models.stages import Stage
from ..models.weights import Weights
from ..ops import get_ops
from ..ops.protocol import Array, Ops
from ..ops.weight_budget import float32_bytes
from ..profiles import Quirks
from ..tracing.trace import At, Probe, Probes, Tap, no_tap
from .units import by_units

BATCH = 512  # rows run through the decoder at once: bounds the memory of the attention scores
UNKNOWN = 1 << 32  # bytes of memory supposed to be free where the system does not say
ROWS = 64  # positions whose logits `each` computes at once
Part = Sequence[int] | np.ndarray  # token ids, or rows (n, D) that stand in for embeddings


class Engine:
    """A text model, a vision tower with its projector, or both, ready to run. Weights stay packed until they are used.

    Everything a file says is checked here, before any weight is converted: GGUFError, PairError."""

    def __init__(
        self,
        text_file: GGUFFile | None,
        mmproj_file: GGUFFile | None,
        *,
        backend: str = "torch",
        device: str = "cpu",
        precision: str = "exact",
        threads: int | None = None,
        quirks: Quirks,
        weight_cache: int | None = None,
    ) -> None:
        self.text_file, self.mmproj_file, self.quirks, self.precision = text_file, mmproj_file, quirks, precision
        files = [file for file in (text_file, mmproj_file) if file is not None]
        budget = default_budget(files) if weight_cache is None else weight_cache
        self.ops: Ops = get_ops(backend, device, threads, budget, precision, quirks)
        self.text = None if text_file is None else decoder.plan(read_text(text_file), quirks)
        self.vision = None if mmproj_file is None else read_vision(mmproj_file)
        if text_file is not None and self.text is not None:
            weights = Weights(text_file, self.ops)
            self._text_weights = decoder.load(weights, self.text)
            weights.finish()
        if mmproj_file is not None and self.vision is not None:
            self._load_vision(mmproj_file)

    def _load_vision(self, file: GGUFFile) -> None:
        assert self.vision is not None
        self.plan = vision.plan(self.vision, self.quirks)
        self._tower_ops = self.ops.uncached()
        weights = Weights(file, self._tower_ops)
        self._vision_weights = vision.load(file, weights, self.vision, self.plan)
        self._projector_weights = projector.load(weights, self.vision.width, self.quirks)
        unused = tuple(f"v.blk.{i}." for i in range(self.plan.n_layer, self.vision.n_stored))
        weights.finish(unused if self.plan.post_ln else (*unused, "v.post_ln."))
        out = self._projector_weights.second.weight.shape[0]
        if self.text is not None and out != self.text.width:
            problem = f"has {out} rows, but the text model's embedding_length is {self.text.width}"
            raise PairError(file.path, "mm.2.weight", problem)

    def encode(self, pixels: np.ndarray, tap: Tap = no_tap) -> np.ndarray:
        """Normalised pixels (3, S, S) float32 -> image rows (N, D) float32; NumericsError."""
        assert self.vision is not None and self.mmproj_file is not None, "this engine has no vision tower"
        rows = self._encode(pixels, tap)
        if not self.ops.all_finite(rows):
            self._encode(pixels, Probes(_Refuse(self.ops, self.mmproj_file)).tap(self))
        return self.ops.numpy(rows)

    def _encode(self, pixels: np.ndarray, tap: Tap) -> Array:
        assert self.vision is not None
        ops, largest = self._tower_ops, self.vision.width * self.vision.mlp_width
        # bad numbers are told by `all_finite`, not by numpy's warnings
        with np.errstate(all="ignore"), ops.running(self.vision.n_patches, largest):
            features = vision.encode(ops.array(pixels), self._vision_weights, self.vision, self.plan, ops, tap)
            return projector.mlp(features, self._projector_weights, ops, tap)

    def session(self, n_context: int | None = None, probes: Probes | None = None) -> "Session":
        """An empty sequence of at most `n_context` positions (default: what the model was trained for)."""
        return Session(self, n_context, probes)

    def stages(self) -> tuple[Stage, ...]:
        """Every stage that these files run, in order."""
        found: list[Stage] = []
        if self.vision is not None:
            w = self._vision_weights
            found += stages.tower(len(w.blocks), w.pre_ln is not None, w.post_ln is not None)
        return tuple(found if self.text is None else [*found, *stages.text(self.text)])

    def types(self) -> dict[str, str]:
        """Stage -> ggml type of the matrix that it is a product with, for the stages that are."""
        files = [file for file in (self.text_file, self.mmproj_file) if file is not None]
        types = {name: view.type for file in files for name, view in file.tensors.items()}
        if "token_embd.weight" in types:
            types.setdefault("output.weight", types["token_embd.weight"])
        return {stage.name: types[stage.weight] for stage in self.stages() if stage.weight in types}

    def unembed(self, hidden: np.ndarray) -> np.ndarray:
        """The final norm and the output matrix over hidden states of any layer, (T, D) -> (T, V) float32."""
        assert self.text is not None, "this engine has no text model"
        with self.ops.running(len(hidden), self.text.n_vocab * self.text.width):
            return self.ops.numpy(decoder.logits(self.ops.array(hidden), self._text_weights, self.text, self.ops))


class Session:
    """One sequence: the positions fed so far and their keys and values."""

    def __init__(self, engine: Engine, n_context: int | None = None, probes: Probes | None = None) -> None:
        assert engine.text is not None and engine.text_file is not None, "this engine has no text model"
        self._engine, self._text, self._weights = engine, engine.text, engine._text_weights
        self._file, self._ops = engine.text_file, engine.ops
        self.n_context = n_context or self._text.context
        self._cache = KVCache(self._text.n_layer, self._text.n_head_kv, self._text.head_size, self.n_context, self._ops)
        self._run_units: list[tuple[Part, int]] = []  # and the position behind each
        self._probes = probes or Probes()
        self.watched = False
        """Whether a probe may have changed what is kept here, so that nobody else may go on from it."""

    @property
    def n_past(self) -> int:
        """Positions fed so far."""
        return self._cache.length

    def feed(self, parts: Sequence[Part], *, all_logits: bool = False) -> np.ndarray:
        """Runs token ids and image rows, in order, at the next positions.

        Logits of the last position (V,), or of every one fed, (T, V), float32. PromptError, before any work, where they
        do not fit the context; NumericsError where a NaN or infinity appears, naming the first tensor to hold one."""
        self._check(parts)
        first = self.n_past
        hidden = [self._forward(run) for run in self._runs(parts)]
        if all_logits:
            return self._logits(self._ops.concat(hidden), first)
        return self._logits(hidden[-1][-1:], self.n_past - 1)[-1]

    def each(self, parts: Sequence[Part]) -> Iterator[np.ndarray]:
        """Logits (V,) of every position fed, one after the other: memory holds those of `ROWS` at once."""
        self._check(parts)
        for run in self._runs(parts):
            first, hidden = self.n_past, self._forward(run)
            ends = _ends(run, ROWS)
            if self._probes.whole:
                yield from self._logits(hidden, first, ends)
                continue
            for start, end in pairwise([0, *ends]):
                yield from self._logits(hidden[start:end], first + start)

    def _runs(self, parts: Sequence[Part]) -> list[list[Part]]:
        """Return what is run at once: a unit, or everything where a probe must see it whole."""
        found = units(parts)
        return [found] if self._probes.whole else [[unit] for unit in found]

    def _check(self, parts: Sequence[Part]) -> None:
        count = sum(map(len, parts))
        if not count:
            raise PromptError("prompt", "tokens", "there are none")
        if self.n_past + count > self.n_context:
            problem = f"{self.n_past + count} positions do not fit the context of {self.n_context}"
            raise PromptError("prompt", "tokens", problem)
        for part in parts:
            if isinstance(part, np.ndarray):
                if part.ndim != 2 or part.shape[1] != self._text.width:
                    raise PromptError("prompt", "image rows", f"{part.shape}, expected (n, {self._text.width})")
            elif not all(0 <= token < self._text.n_vocab for token in part):
                raise PromptError("prompt", "tokens", f"an id is not in 0..{self._text.n_vocab - 1}")

    def rewind(self, parts: Sequence[Part]) -> list[Part]:
        """Goes back to where the sequence is the beginning of `parts`; what of them is left to feed, at least one unit.

        What is kept is bit for bit what would be computed again, because a unit's result depends on no other split."""
        wanted, same = units(parts), 0
        while same < min(len(self._run_units), len(wanted) - 1) and _equal(self._run_units[same][0], wanted[same]):
            same += 1
        del self._run_units[same:]
        self._cache.length = self._run_units[-1][1] if self._run_units else 0
        return wanted[same:]

    def _forward(self, run: Sequence[Part]) -> Array:
        """Hidden states (n, D) of units run at once, which are then part of the sequence."""
        ops, w, first, c = self._ops, self._weights, self.n_past, self._text
        largest = c.width * max(c.mlp_width, c.n_head * c.head_size)
        ends = list(accumulate(map(len, run)))
        self.watched |= self._probes.complete
        # bad numbers are told by `all_finite`, not by numpy's warnings
        with np.errstate(all="ignore"), ops.running(max(map(len, run)), largest):
            rows = [ops.array(unit) if isinstance(unit, np.ndarray) else ops.embed(w.embd, unit) for unit in run]
            tap, apart = self._tap(first, first + ends[-1]), by_units(ops, first, ends, largest)
            hidden = decoder.forward(ops.concat(rows), w, c, self._cache, apart, tap)
        self._run_units += [(unit, first + end) for unit, end in zip(run, ends, strict=True)]
        return hidden

    def _logits(self, hidden: Array, first: int, ends: Sequence[int] = ()) -> np.ndarray:
        """(n, V) of hidden states (n, D) at positions from `first` on, computed apart up to each of `ends`."""
        n = hidden.shape[0]
        tap = self._tap(first, first + n)
        largest = self._text.n_vocab * self._text.width
        ops = by_units(self._ops, first, ends or [n], largest)
        with np.errstate(all="ignore"), ops.running(n, largest):
            logits = decoder.logits(hidden, self._weights, self._text, ops, tap)
        if not self._ops.all_finite(logits):
            again = Session(self._engine, self.n_context, Probes(_Refuse(self._ops, self._file)))
            deque(again.each([unit for unit, _ in self._run_units]), maxlen=0)
            if self._probes.whole:
                raise ParameterError("intervene", "result_output", "holds NaN or infinity, which an edit brought in")
        return self._ops.numpy(logits)

    def _tap(self, first: int, end: int) -> Tap:
        return self._probes.tap(self, range(first, end))


def units(parts: Sequence[Part]) -> list[Part]:
    """What is run at once: a piece of text or a picture, or `BATCH` positions of one.

    So the arithmetic of a prompt's beginning does not depend on what comes behind it. llama.cpp decodes so too."""
    return [part[i : i + BATCH] for part in parts for i in range(0, len(part), BATCH)]


def _ends(run: Sequence[Part], rows: int) -> list[int]:
    """Return where stretches of at most `rows` end, each in one unit."""
    at, ends = 0, list[int]()
    for unit in run:
        ends += [*range(at + rows, at + len(unit), rows), at + len(unit)]
        at += len(unit)
    return ends


def _equal(a: Part, b: Part) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return np.array_equal(a, b)
    return not isinstance(a, np.ndarray) and not isinstance(b, np.ndarray) and list(a) == list(b)


class _Refuse(Probe):
    """Stops at the first array with a NaN or infinity and names it."""

    def __init__(self, ops: Ops, file: GGUFFile) -> None:
        super().__init__(["*"])
        self._ops, self._file = ops, file

    def see(self, x: Array, at: At) -> Array:
        if not self._ops.all_finite(x):
            raise NumericsError(self._file.path, at.name, "holds NaN or infinity, the first tensor to do so")
        return x


def default_budget(files: Sequence[GGUFFile]) -> int:
    """Bytes of weights to keep in float32: all of them if that takes at most half of the memory now free, else none."""
    total = sum(float32_bytes(view) for file in files for view in file.tensors.values())
    return total if total <= _free_memory() // 2 else 0


def _free_memory() -> int:
    """Return the bytes that are free, or a guess where the system does not say."""
    try:
        with open("/proc/meminfo") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration):  # not Linux: half of what the machine has; Windows has no sysconf
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2 if hasattr(os, "sysconf") else UNKNOWN
