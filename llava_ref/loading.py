"""Load a model from files and settings, and say everything that can be wrong with either."""

import time
from collections.abc import Mapping
from pathlib import Path

from . import gguf
from .errors import PairError, ParameterError
from .gguf import GGUFFile
from .model import Llava
from .models import family, holds_tower, text_family, tower_family
from .models.family import TextModel, Tower
from .ops import get_ops
from .ops.protocol import Ops
from .ops.weight_budget import default_budget
from .profiles import Quirks, describe, resolve


def embedded() -> tuple[Path, Path]:
    """Return the text model and the mmproj file that come with the package."""
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
    """Open a pair; `text` may be None (pictures can then only be encoded), and `mmproj` (text only).

    `quirks` changes single quirks of the profile. `weight_cache`: bytes of converted weights kept, by default as
    `weight_budget.default_budget` says. `n_context`: positions of prompt and answer, by default and at most what the
    model was trained for. `template`, instead of the file's own: the name of one of ours, jinja source, or the path of
    a file that holds it. Raises GGUFError and PairError for the files, ParameterError for a setting."""
    began = time.perf_counter()
    _check_settings(threads, weight_cache, n_context)
    text_file, mmproj_file = _read(text, mmproj)
    resolved = resolve(profile, quirks, original(text_file, mmproj_file))
    files = [file for file in (text_file, mmproj_file) if file is not None]
    budget = default_budget(files, device, precision) if weight_cache is None else weight_cache
    ops = operations(backend, device, threads, budget, precision, resolved)
    settings = {"profile": profile, "precision": precision, "backend": backend, "device": device}
    model = Llava(
        None if text_file is None else text_family(text_file).load(text_file, ops, resolved),
        None if mmproj_file is None else tower_family(mmproj_file).load(mmproj_file, ops, resolved),
        resolved,
        settings | {"quirks": describe(resolved)},
        n_context,
        template,
    )
    if model.has_text and model.has_tower:
        _check_pair(model)
    model.threads, model.load_s = threads, time.perf_counter() - began
    return model


def _read(text: str | Path | None, mmproj: str | Path | None) -> tuple[GGUFFile | None, GGUFFile | None]:
    if text is None and mmproj is None:
        raise ParameterError("load", "text", "neither a text model nor an mmproj file was given")
    text_file = None if text is None else gguf.read(text)
    if text_file is not None and mmproj is None and holds_tower(text_file):
        return text_file, text_file
    return text_file, None if mmproj is None else gguf.read(mmproj)


def operations(backend: str, device: str, threads: int | None, budget: int, precision: str, quirks: Quirks) -> Ops:
    """Return the operations with these settings: `ops.get_ops`, whose attention in precision `ggml` is a quirk's."""
    flash = quirks.flash_attention == "on"
    return get_ops(backend, device, threads, budget, precision, kv_cache=quirks.kv_cache, flash_attention=flash)


def original(text: GGUFFile | None, mmproj: GGUFFile | None) -> str:
    """Return whose code profile `llava` follows for a pair of files: `models.family.original`."""
    halves: list[type[TextModel] | type[Tower]] = [] if text is None else [text_family(text)]
    return family.original(halves if mmproj is None else [*halves, tower_family(mmproj)])


def _check_pair(model: Llava) -> None:
    """Raise PairError where the two files were not made for each other."""
    text, tower = model.text, model.tower
    name, axis = tower.output(tower.file)
    if tower.width != text.config.width:
        side, width = ("rows", "columns")[axis], text.config.width
        problem = f"has {tower.width} {side}, but the text model's embedding_length is {width}"
        raise PairError(tower.file.path, name, problem)
    for marker in tower.MARKERS:
        if len(model.tokenizer.encode(marker, prefix=False)) != 1:
            problem = f"has no token {marker}, which stands beside every picture of {tower.file.path}"
            raise PairError(text.file.path, "tokenizer.ggml.tokens", problem)


def _check_settings(threads: int | None, weight_cache: int | None, n_context: int | None) -> None:
    for name, value, low in (("threads", threads, 1), ("weight_cache", weight_cache, 0), ("n_context", n_context, 2)):
        if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < low):
            raise ParameterError(name, repr(value), f"expected a whole number from {low}")
