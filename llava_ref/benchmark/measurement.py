"""Measure a model: loads, a first pass, and the passes that count, with the read rate of memory between them.

Where there is a reference, it does the same in turn, and rests meanwhile.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any, Protocol

from ..model import Llava
from .floor import bytes_of_token
from .machine import Machine, peak_rss_mb
from .measure import Clocks, Repetition, Repetitions, Stopwatch, repeat
from .workload import STAGES, Workload

RATES = ("prefill_tok_s", "decode_tok_s")
COSTS = ("load_s", "preprocess_s", "encode_s", "peak_rss_mb")


class Rival(Protocol):
    """Another program with the same model, in a process of its own."""

    def load(self) -> Repetition: ...

    def run(self, prompt: Sequence[int], tokens: Sequence[int]) -> Repetition:
        """Run every stage: the picture, the prompt, and these tokens behind it."""
        ...

    def about(self) -> dict[str, Any]:
        """Return `peak_rss_mb`, and what else is to be reported."""
        ...


@dataclass(frozen=True, slots=True)
class Timed:
    """What one program has taken."""

    workload: Workload
    loads: Repetitions
    first_pass_s: float
    """The pass before those that count: pages are read, weights converted, kernels compiled."""
    passes: Repetitions
    peak_rss_mb: float | None

    def rate(self, stage: str, n: int) -> float | None:
        """Return the tokens a second of a stage that runs n."""
        seconds = self.passes.median(stage)
        return n / seconds if seconds else None

    def figures(self) -> dict[str, Any]:
        """Return the medians, and what they are made of."""
        return {
            "load_s": self.loads.median("load"),
            "preprocess_s": self.passes.median("preprocess"),
            "encode_s": self.passes.median("encode"),
            "prefill_tok_s": self.rate("prefill", self.workload.n_prompt),
            "decode_tok_s": self.rate("decode", self.workload.n_gen),
            "peak_rss_mb": self.peak_rss_mb,
            "first_pass_s": self.first_pass_s,
            "processors": {stage: self.processors(stage) for stage in ("load", *STAGES)},
            "repetitions": [asdict(one) for one in self.passes.kept],
        }

    def processors(self, stage: str) -> float | None:
        """Return processor time over wall time, a median."""
        return (self.loads if stage == "load" else self.passes).processors(stage)


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that one run has measured."""

    own: Timed
    settings: dict[str, Any]
    read_gb_s: tuple[float, ...]
    """One figure behind every pass."""
    floor_bytes: int
    """Bytes that a token must read, in the middle of those that are decoded."""
    device_memory_mb: float | None
    reference: Timed | None
    about: dict[str, Any]
    """What the reference says of itself."""

    @property
    def workload(self) -> Workload:
        return self.own.workload

    @property
    def floor_tok_s(self) -> float:
        """Return the tokens a second that memory allows, read without a pause."""
        return median(self.read_gb_s) * 1e9 / self.floor_bytes

    def figures(self) -> dict[str, Any]:
        """Return the medians as JSON, and beside them what they are made of."""
        found = self._beside(self.own)
        found |= {
            "device_memory_mb": self.device_memory_mb,
            "floor_bytes_per_token": self.floor_bytes,
            "floor_decode_tok_s": self.floor_tok_s,
            "n_prompt": self.workload.n_prompt,
            "n_gen": self.workload.n_gen,
            "refused": self.own.passes.n_refused,
            "noisy": self.own.passes.n_noisy,
            "read_gb_s_each": list(self.read_gb_s),
            **self.settings,
        }
        if self.reference is not None:
            found["reference"] = self._beside(self.reference) | self.about
            found["ratio"] = ratios(found, found["reference"])
        return found

    def _beside(self, timed: Timed) -> dict[str, Any]:
        """Return figures beside those of memory."""
        found = timed.figures() | {"read_gb_s": median(self.read_gb_s)}
        return found | {"floor_share": found["decode_tok_s"] and found["decode_tok_s"] / self.floor_tok_s}


def ratios(ours: dict[str, Any], theirs: dict[str, Any]) -> dict[str, float | None]:
    """Return for each figure how many times better ours is: above 1, this project is faster, or takes less memory."""

    def over(a: float | None, b: float | None) -> float | None:
        return a / b if a and b else None

    rates = {key: over(ours[key], theirs[key]) for key in RATES}
    return rates | {key: over(theirs[key], ours[key]) for key in COSTS}


class _Own:
    """This project: the last model that it loaded, the prompt, and the tokens that the last pass chose."""

    def __init__(self, load: Callable[[], Llava], workload: Workload, watch: Stopwatch) -> None:
        self._load, self._workload, self._watch = load, workload, watch
        self._models = list[Llava]()
        self.prompt, self.tokens = list[int](), list[int]()

    @property
    def model(self) -> Llava:
        (model,) = self._models
        return model

    def load(self) -> Repetition:
        def loading() -> None:
            self._models.clear()
            gc.collect()
            with self._watch.lap("load"):
                self._models.append(self._load())

        return self._watch.repetition(loading)

    def run(self) -> Repetition:
        self.prompt = self._workload.prompt(self.model)

        def passing() -> None:
            self.tokens = self._workload.run(self.model, self.prompt, self._watch)

        return self._watch.repetition(passing)


def measure(
    load: Callable[[], Llava],
    workload: Workload,
    n: int,
    machine: Machine,
    clocks: Clocks | None = None,
    reference: Rival | None = None,
) -> Measurement:
    """Load n times; then run the last model once, and after that n times that count, in turn with the reference.

    Raises ParameterError where the workload does not fit the model, or the reference fails."""
    clocks = clocks or Clocks()
    own, reads = _Own(load, workload, Stopwatch(clocks, machine.ready)), list[float]()
    loading, passing = [own.load], [own.run]
    if reference is not None:
        loading.append(reference.load)
        passing.append(lambda: reference.run(own.prompt, own.tokens))
    loads = repeat(loading, n, clocks.processors)
    workload.check(own.model)
    firsts = [run().seconds for run in passing]
    passes = repeat(passing, n, clocks.processors, lambda: reads.append(machine.read_gb_s()))
    floor = bytes_of_token(own.model.text.step_plan(), workload.n_prompt + workload.n_gen // 2)
    about = reference.about() if reference else {}
    peaks = [peak_rss_mb(), about.pop("peak_rss_mb", None)]
    timed = [Timed(workload, *each) for each in zip(loads, firsts, passes, peaks, strict=False)]
    device = machine.device_memory_mb()
    return Measurement(
        timed[0], own.model.settings, tuple(reads), floor, device, timed[1] if reference else None, about
    )
