"""From files and settings to a model ready to run: everything that can be wrong with either is said here."""

import time
from collections.abc import Mapping
from pathlib import Path

from . import gguf
from .errors import ParameterError
from .generation.engine import Engine
from .model import Llava
from .profiles import describe, resolve


def embedded() -> tuple[Path, Path]:
    """The text model and the mmproj file that come with the package."""
    assets = Path(__file__).parent / "assets"
    return assets / "shapes-text.q8_0.gguf", assets / "shapes-mmproj.f16.gguf"


def load(
    text: str | Path | None,
    mmproj: str | Path | None = None,
    *,
    backend: str = "torch",
    device: str = "cpu",
    precision: str = "exact",
    profile: str = "llava",
    quirks: Mapping[str, str] | None = None,
    threads: int | None = None,
    weight_cache: int | None = None,
    n_context: int | None = None,
    template: str | Path | None = None,
) -> Llava:
    """Opens a pair; `text` may be None (pictures can then only be encoded), and `mmproj` (text only).

    `quirks` changes single quirks of the profile. `weight_cache`: bytes of weights kept as float32 (default: all, if
    they take at most half of the free memory). `n_context`: positions of prompt and answer, by default and at most what
    the model was trained for. `template`, instead of the file's own: the name of one of ours, jinja source, or the
    path of a file that holds it.
    GGUFError, PairError for the files; ParameterError for a setting."""
    began = time.perf_counter()
    _check_settings(threads, weight_cache, n_context)
    if text is None and mmproj is None:
        raise ParameterError("load", "text", "neither a text model nor an mmproj file was given")
    text_file = None if text is None else gguf.read(text)
    mmproj_file = None if mmproj is None else gguf.read(mmproj)
    resolved = resolve(profile, quirks)
    engine = Engine(
        text_file,
        mmproj_file,
        backend=backend,
        device=device,
        precision=precision,
        threads=threads,
        quirks=resolved,
        weight_cache=weight_cache,
    )
    settings = {"profile": profile, "precision": precision, "backend": backend, "device": device}
    model = Llava(engine, settings | {"quirks": describe(resolved)}, n_context, template)
    model.load_s = time.perf_counter() - began
    return model


def _check_settings(threads: int | None, weight_cache: int | None, n_context: int | None) -> None:
    for name, value, low in (("threads", threads, 1), ("weight_cache", weight_cache, 0), ("n_context", n_context, 2)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ParameterError(name, repr(value), f"expected a whole number from {low}")
