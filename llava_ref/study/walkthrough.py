"""Run one answer and tell it step by step: shapes, seconds, memory, the files' keys and tensors, and lines of code.

A run has phases (load, picture, tower, prompt, decoder, answer); a phase that computes named arrays has a row for each.
Every array is watched, so operations that a backend would fuse run apart: seconds are the parts' and not `bench`'s.
"""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..generation.request import Request
from ..generation.sampler import Sampler
from ..generation.session import Session
from ..gguf import GGUFFile
from ..loading import load
from ..memory import resident_mb
from ..model import Llava
from ..models.stages import Stage
from ..ops.protocol import Array
from ..tracing.trace import At, Probe, joined_shape

PACKAGE = Path(__file__).parents[1]


@dataclass(frozen=True, slots=True)
class Computed:
    """One named array of a run."""

    stage: str
    shape: tuple[int, ...]
    seconds: float
    """Since the array before it, or the beginning of its phase."""
    tensor: str | None
    """The stored matrix that it is a product with, and its type: "blk.0.attn_q.weight Q8_0"."""
    line: str
    """The line of the pass that names it: "models/llama.py:151"."""


@dataclass(slots=True)
class Phase:
    """A part of a run."""

    name: str
    line: str
    """Where its code begins."""
    facts: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    resident_mb: float | None = None
    """Memory of the process behind it, in 10^6 bytes; None where the system does not say."""
    arrays: dict[str, Computed] = field(default_factory=dict)
    """By stage, in the order computed. The rows of a prompt that were run in several passes are one array."""


class Watch(Probe):
    """Notes every array for the phase that is running."""

    def __init__(self, stages: tuple[Stage, ...], files: list[GGUFFile]) -> None:
        super().__init__(["*"])
        self.phases: list[Phase] = []
        self._weights = {stage.name: stage.weight for stage in stages}
        self._types = {name: view.type for file in files for name, view in file.tensors.items()}
        self._last = 0.0

    @contextmanager
    def phase(self, name: str, code: Callable[..., object]) -> Iterator[Phase]:
        """Time a phase; the arrays computed inside the block are its own. `code`: the function that it begins with."""
        found = Phase(name, beginning(code))
        self.phases.append(found)
        began = self._last = time.perf_counter()
        yield found
        found.seconds = time.perf_counter() - began
        found.resident_mb = resident_mb()

    def see(self, x: Array, at: At) -> Array:
        now, caller = time.perf_counter(), sys._getframe(2)  # see <- tap <- the pass
        line = where(caller.f_code.co_filename, caller.f_lineno)
        seconds, shape, arrays = now - self._last, tuple(x.shape), self.phases[-1].arrays
        if before := arrays.get(at.numbered):
            seconds, shape = seconds + before.seconds, joined_shape(at.name, [before.shape, shape])
        arrays[at.numbered] = Computed(at.numbered, shape, seconds, self._tensor(at.name), line)
        self._last = time.perf_counter()
        return x

    def _tensor(self, stage: str) -> str | None:
        name = self._weights.get(stage)
        return f"{name} {self._types[name]}" if name in self._types else None


def beginning(code: Callable[..., object]) -> str:
    """Return the place where a function begins."""
    return where(code.__code__.co_filename, code.__code__.co_firstlineno)


def where(file: str, line: int) -> str:
    """Return a place in this package's code, by its path inside the package."""
    path = Path(file)
    inside = path.relative_to(PACKAGE) if path.is_relative_to(PACKAGE) else Path(path.name)
    return f"{inside.as_posix()}:{line}"


def walk(model: Llava, prepare: Callable[[], Request], max_tokens: int) -> list[Phase]:
    """Answer greedily in at most `max_tokens` tokens, and return what every phase did.

    `prepare` makes the request; it is part of the run. Raises a LlavaError as an ordinary run does."""
    files = [model.text.file]
    if model.has_tower and model.tower.file is not model.text.file:
        files.append(model.tower.file)
    watch = Watch(model.stage_table(), files)
    watch.phases.append(_loaded(model, files))
    with watch.phase("prompt", model.request) as phase:
        request = prepare()
        phase.facts |= _prompt_facts(model, request)
    with model.probed(watch):
        if request.images:
            with watch.phase("pictures", type(model.tower).encode) as phase:
                parts = model.parts(request)
                phase.facts |= {"projector": model.tower.file.string("clip.projector_type", "not stated")}
        else:
            parts = model.parts(request)
        with watch.phase("decoder", type(model.text).forward) as phase:
            session = model.session()
            logits = session.feed(parts)
            phase.facts["positions"] = str(session.n_past)
        _answered(model, watch, session, logits, max_tokens)
    return watch.phases


def _loaded(model: Llava, files: list[GGUFFile]) -> Phase:
    phase = Phase("load", beginning(load))
    phase.seconds, phase.resident_mb = model.load_s, resident_mb()
    for file in files:
        size = sum(view.data.nbytes for view in file.tensors.values())
        asked = [key for key in file.asked if key in file]
        phase.facts[file.path.name] = f"{len(file.tensors)} tensors, {size:,} bytes; keys read: {', '.join(asked)}"
    phase.facts |= {key: str(value) for key, value in model.settings.items() if key != "quirks"}
    return phase


def _prompt_facts(model: Llava, request: Request) -> dict[str, str]:
    ids = request.token_ids
    pictures = [f"{image.rgb.shape[1]} x {image.rgb.shape[0]}" for image in request.images]
    return {
        "template": f"{model.template.name} ({model.template.why})",
        "rendered": json.dumps(request.prompt.shown, ensure_ascii=False),
        "positions": f"{len(ids)}, of which {sum(i < 0 for i in ids)} are rows of pictures",
        "pictures": f"{', '.join(pictures) or 'none'}; decoded in {request.decode_s * 1e3:.1f} ms",
    }


def _answered(model: Llava, watch: Watch, session: Session, logits: np.ndarray, max_tokens: int) -> None:
    """Take the likeliest token again and again; the rows of all tokens are one array."""
    tokens = [int(logits.argmax())]
    with watch.phase("answer", Sampler.pick) as phase:
        while len(tokens) < max_tokens and tokens[-1] not in model.tokenizer.end_ids:
            tokens.append(int(session.feed([tokens[-1:]]).argmax()))
    each = phase.seconds / max(len(tokens) - 1, 1)
    text = model.tokenizer.decode(token for token in tokens if token not in model.tokenizer.end_ids)
    phase.facts |= {"text": text, "token ids": str(tokens), "a token": f"{each * 1e3:.1f} ms"}
