"""Print a measurement for people: a row for every stage, and lines about the machine."""

from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import visible
from .measure import QUIET
from .measurement import Measurement, Timed

STAGES = {"load": "load_s", "preprocess": "preprocess_s", "encode": "encode_s"}
RATES = {"prefill": "prefill_tok_s", "decode": "decode_tok_s"}


def lines(found: Measurement, figures: dict[str, Any]) -> Iterator[str]:
    """Yield every line. `figures` are those of the measurement, and `n_threads` and `model`."""
    yield from _alone(found.own) if found.reference is None else _beside(found.own, found.reference, figures)
    yield f"{'read':12}{figures['read_gb_s']:10.4g} {'GB/s':14} {_spread(found.read_gb_s):>20}"
    yield ""
    share = f"{figures['floor_share']:.1%} of the {found.floor_tok_s:.4g} tokens/s that memory allows"
    yield f"decode: {share} ({found.floor_bytes:,} bytes a token)"
    memory = "" if found.device_memory_mb is None else f", {found.device_memory_mb:,.0f} MB of the device's"
    yield f"memory: {_megabytes(found.own)} at most{memory}; first pass {found.own.first_pass_s:.3g} s"
    settings = ", ".join(str(figures[name]) for name in ("backend", "device", "precision", "profile"))
    yield visible(f"{figures['model']}: {settings}, at most {figures['n_threads']} threads")
    if found.reference is not None:
        yield from _reference(found.reference, figures)
    yield _noise(found)


def agreement(figures: dict[str, Any], n: int) -> tuple[str, bool]:
    """Say how many of llama.cpp's `n` likeliest tokens were this project's, and whether all were."""
    same = figures["reference"]["same_tokens"]
    return f"llama.cpp: the likeliest token was this project's {same} times of {n}", same == n


def _alone(own: Timed) -> Iterator[str]:
    yield f"{'stage':12}{'median':>10}                {'least .. most':>20}  processors"
    for stage, seconds, n in _stages(own):
        values = sorted(n / s for s in seconds) if n else sorted(seconds)
        middle = (values[len(values) // 2] + values[(len(values) - 1) // 2]) / 2
        processors = own.processors(stage) or 0
        yield f"{stage:12}{middle:10.4g} {_unit(n):14} {_spread(values):>20}  {processors:10.2f}"


def _beside(own: Timed, other: Timed, figures: dict[str, Any]) -> Iterator[str]:
    """Yield both medians of every stage. A ratio above 1 says that this project is faster."""
    yield f"{'stage':12}{'this':>10}{'llama.cpp':>11} {'':14}{'ratio':>7}   processors"
    for stage, _, n in _stages(own):
        key = (STAGES | RATES)[stage]
        ours, theirs, ratio = (side[key] for side in (figures, figures["reference"], figures["ratio"]))
        used = f"{own.processors(stage) or 0:.2f} | {other.processors(stage) or 0:.2f}"
        theirs, ratio = (f"{value:.4g}" if value else "-" for value in (theirs, ratio))
        yield f"{stage:12}{ours:10.4g}{theirs:>11} {_unit(n):14}{ratio:>7}  {used:>11}"


def _stages(timed: Timed) -> Iterator[tuple[str, Sequence[float], int]]:
    """Yield the stages that were run: name, seconds of each repetition, and tokens where it runs tokens."""
    w = timed.workload
    yield "load", timed.loads.seconds("load"), 0
    for stage, n in ("preprocess", 0), ("encode", 0), ("prefill", w.n_prompt), ("decode", w.n_gen):
        if seconds := timed.passes.seconds(stage):
            yield stage, seconds, n


def _reference(other: Timed, figures: dict[str, Any]) -> Iterator[str]:
    about = figures["reference"]
    yield visible(
        f"llama.cpp: {about['library']}, ggml {about['ggml']}, {about['n_threads']} threads; {about['system']}"
    )
    yield f"llama.cpp: {_megabytes(other)} at most; first pass {other.first_pass_s:.3g} s"
    if figures["encode_s"] is not None and figures["quirks"].get("vit_layers") == "stored":
        yield "encode: without clip.vision.feature_layer llama.cpp runs a block less: so does --profile llama.cpp"


def _megabytes(timed: Timed) -> str:
    return "unknown" if timed.peak_rss_mb is None else f"{timed.peak_rss_mb:,.0f} MB"


def _unit(n: int) -> str:
    return f"tokens/s ({n})" if n else "s"


def _spread(values: Sequence[float]) -> str:
    return f"{min(values):.4g} .. {max(values):.4g}"


def _noise(found: Measurement) -> str:
    """Say how busy others kept the machine, and what that changed."""
    passes = found.own.passes
    sides = [passes] if found.reference is None else [passes, found.reference.passes]
    if any(side.others is None for side in sides):
        return "other load: unknown on this system"
    most = max(side.others or 0.0 for side in sides)
    counted = f"{passes.n_refused} noisy repetitions left out" if passes.n_refused else "no repetition left out"
    if passes.n_noisy:
        counted += f", {passes.n_noisy} of {len(passes.kept)} counted though noisy: speeds are too low"
    return f"other load: at most {most:.2f} processors ({QUIET:.0%} of the machine's is noisy); {counted}"
