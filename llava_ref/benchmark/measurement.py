"""Measure a model: loads, a first pass, and the passes that count, with the read rate of memory between them."""

import gc
from collections.abc import Callable
from dataclasses import asdict, dataclass
from statistics import median
from typing import Any

from ..model import Llava
from .floor import bytes_of_token
from .machine import Machine, peak_rss_mb
from .measure import Clocks, Repetitions, Stopwatch, repeat
from .workload import Workload


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything that one run has measured."""

    workload: Workload
    settings: dict[str, Any]
    loads: Repetitions
    first_pass_s: float
    """The pass before those that count: pages are read, weights converted, kernels compiled."""
    passes: Repetitions
    read_gb_s: tuple[float, ...]
    """One figure behind every pass."""
    floor_bytes: int
    """Bytes that a token must read, in the middle of those that are decoded."""
    peak_rss_mb: float | None
    device_memory_mb: float | None

    def rate(self, stage: str, n: int) -> float | None:
        """Return the tokens a second of a stage that runs n."""
        seconds = self.passes.median(stage)
        return n / seconds if seconds else None

    @property
    def floor_tok_s(self) -> float:
        """Return the tokens a second that memory allows, read without a pause."""
        return median(self.read_gb_s) * 1e9 / self.floor_bytes

    def figures(self) -> dict[str, Any]:
        """Return the medians as JSON, and beside them what they are made of."""
        decode = self.rate("decode", self.workload.n_gen)
        return {
            "load_s": self.loads.median("load"),
            "preprocess_s": self.passes.median("preprocess"),
            "encode_s": self.passes.median("encode"),
            "prefill_tok_s": self.rate("prefill", self.workload.n_prompt),
            "decode_tok_s": decode,
            "peak_rss_mb": self.peak_rss_mb,
            "read_gb_s": median(self.read_gb_s),
            "first_pass_s": self.first_pass_s,
            "device_memory_mb": self.device_memory_mb,
            "floor_bytes_per_token": self.floor_bytes,
            "floor_decode_tok_s": self.floor_tok_s,
            "floor_share": decode and decode / self.floor_tok_s,
            "n_prompt": self.workload.n_prompt,
            "n_gen": self.workload.n_gen,
            "repetitions": [asdict(one) for one in self.passes.kept],
            "refused": self.passes.n_refused,
            "noisy": self.passes.n_noisy,
            "read_gb_s_each": list(self.read_gb_s),
            **self.settings,
        }


def measure(
    load: Callable[[], Llava], workload: Workload, n: int, machine: Machine, clocks: Clocks | None = None
) -> Measurement:
    """Load n times; then run the last model once, and after that n times that count.

    Raises ParameterError where the workload does not fit the model."""
    watch, models, reads = Stopwatch(clocks or Clocks(), machine.ready), list[Llava](), list[float]()

    def loading() -> None:
        models.clear()
        gc.collect()
        with watch.lap("load"):
            models.append(load())

    loads = repeat(watch, loading, n)
    (model,) = models
    workload.check(model)
    first = watch.repetition(lambda: workload.run(model, watch))
    passes = repeat(watch, lambda: workload.run(model, watch), n, lambda: reads.append(machine.read_gb_s()))
    floor = bytes_of_token(model.text.step_plan(), workload.n_prompt + workload.n_gen // 2)
    peaks = peak_rss_mb(), machine.device_memory_mb()
    return Measurement(workload, model.settings, loads, first.seconds, passes, tuple(reads), floor, *peaks)
