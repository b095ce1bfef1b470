"""Measure how far each key of `keys` moves the outcome in llama.cpp, in transformers and here; write the page.

An outcome is logits (T, V), the rows of a picture (N, D), or the token ids of some texts.
`python -m llava_ref.conformance.metadata.effects docs/metadata.md` measures every row and writes the tables again.
"""

import sys
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ref import gguf
from llava_ref.chat.chunks import TextChunk, chunks, raw
from llava_ref.loading import load
from llava_ref.profiles import resolve
from llava_ref.tokenizer.tokenizer import Tokenizer
from llava_ref.tracing.distance import rel_rms

from ..engines.llama_cpp.oracle import Oracle, OracleError
from ..pairs import pairs
from ..pairs.pairs import TextSpec, VisionSpec
from ..pairs.random_weights import Random
from ..pairs.writing import write
from .keys import BASES, Base, KeyRow, rows

TOKENS = [1, *np.random.default_rng(0).integers(3, 400, 40).tolist()]
STRINGS = ["what is  the color", "the picture a  b ", "</s> héllo", "Blue"]
Outcome = np.ndarray | list[list[int]] | None
"""The result of a run; None if the engine refuses the file."""


@dataclass(frozen=True, slots=True)
class Files:
    """Holds a pair with keys changed, and a picture."""

    text: Path
    mmproj: Path
    picture: Path


def files(folder: Path, base: Base, changes: Iterable[KeyRow] = ()) -> Files:
    """Write the pair of a base with these keys set."""
    made = Files(folder / "text.gguf", folder / "mmproj.gguf", folder / "picture.png")
    spec, random, keys = BASES[base], Random(0, 1.0), {row.key: row.value for row in changes}
    text = spec if isinstance(spec, TextSpec) else TextSpec(n_layer=1)
    vision = spec if isinstance(spec, VisionSpec) else VisionSpec(n_block=1, feature_layer=1)
    in_text, in_tower = ({}, keys) if base == "tower" else (keys, {})
    write(made.text, {**pairs.text_metadata(text), **in_text}, pairs.text_tensors(text, random))
    tensors = pairs.vision_tensors(vision, text.width, random)
    write(made.mmproj, {**pairs.vision_metadata(vision, text.width), **in_tower}, tensors)
    rgb = np.random.default_rng(1).integers(0, 256, (40, 71, 3), np.uint8)
    Image.fromarray(rgb).save(made.picture)
    return made


def llama_cpp(f: Files, base: Base) -> Outcome:
    """Return llama.cpp's outcome."""
    try:
        if base == "tower":
            return Oracle(f.text, f.mmproj).encode([f.picture])[0].rows
        if base == "ids":
            return Oracle(f.text).tokenize(STRINGS)
        return Oracle(f.text).logits([[TOKENS]])[0].logits
    except OracleError:
        return None


def transformers(f: Files, base: Base) -> Outcome:
    """Return transformers' outcome, its settings read from the file by `engines.hf`."""
    try:
        return _transformers(f, base)
    except Exception:  # transformers refuses files with exceptions of many types
        return None


def _transformers(f: Files, base: Base) -> Outcome:
    from ..engines.hf import from_gguf as hf_from_gguf
    from ..engines.hf import vocabulary as hf_vocabulary
    from ..engines.hf.engine import preprocess

    if base == "ids":
        return [hf_vocabulary.token_ids(gguf.read(f.text), string, -1, [])[0] for string in STRINGS]
    if base != "tower":
        model = hf_from_gguf.load(f.text, None)
        logits: np.ndarray = model.forward(TOKENS, None).logits[0].numpy()
        return logits
    model = hf_from_gguf.load(f.text, f.mmproj)
    assert model.vision is not None
    pixels, _ = preprocess([Image.open(f.picture)], model.vision)
    output = model.forward([model.image_token] * model.vision.n_patches, pixels)
    rows: np.ndarray = output.image_hidden_states[0].numpy()
    return rows.reshape(-1, rows.shape[-1])


def here(f: Files, base: Base, profile: str, **quirks: str) -> Outcome:
    """Return this project's outcome. Raises GGUFError if it refuses the file."""
    if base == "ids":
        tokenizer, resolved = Tokenizer.from_gguf(gguf.read(f.text)), resolve(profile, quirks)
        texts = [chunks(raw(string, 0, tokenizer), tokenizer, resolved) for string in STRINGS]
        return [[i for part in parts if isinstance(part, TextChunk) for i in part.token_ids] for parts in texts]
    if base == "tower":
        model = load(f.text, f.mmproj, backend="numpy", threads=1, profile=profile, quirks=quirks)
        return model.encode_image(f.picture)
    model = load(f.text, backend="numpy", threads=1, profile=profile, quirks=quirks)
    return model.forward([TOKENS])


def moved(outcome: Outcome, base: Outcome) -> float | str:
    """Return the relative RMS between two outcomes, for token ids the share of texts that differ; or "refuses"."""
    if outcome is None or base is None:
        return "refuses"
    if isinstance(outcome, np.ndarray) and isinstance(base, np.ndarray):
        return rel_rms(outcome, base) if outcome.shape == base.shape else "another shape"
    return sum(a != b for a, b in zip(outcome, base, strict=True)) / len(STRINGS)


@cache
def unchanged(engine: Callable[[Files, Base], Outcome], base: Base) -> Outcome:
    """Return an engine's outcome for the base without any change."""
    with tempfile.TemporaryDirectory() as folder:
        return engine(files(Path(folder), base), base)


def effect(engine: Callable[[Files, Base], Outcome], changes: Sequence[KeyRow]) -> float | str:
    """Return how far rows of one base move an engine's outcome, all put into one file."""
    with tempfile.TemporaryDirectory() as folder:
        base = changes[0].base
        return moved(engine(files(Path(folder), base, changes), base), unchanged(engine, base))


HEADING = "| key | value | in | llama.cpp b11549 | transformers | here |\n|---|---|---|---|---|---|\n"
STILL = "Keys that move neither"
"""Heading of the second table."""


def line(row: KeyRow, llama: float | str, hf: float | str) -> str:
    """Return a row of the page's table."""
    fate = f"quirk `{row.quirk}`" if row.quirk else row.fate
    value = str(row.value).replace("True", "true").replace("False", "false")
    return f"| `{row.key}` | `{value}` | {row.base} | {cell(llama)} | {cell(hf)} | {fate} |\n"


def cell(value: float | str) -> str:
    """Return an effect as a cell of the table."""
    return value if isinstance(value, str) else f"{value:.2g}"


def page(before: str, measured: Mapping[KeyRow, tuple[float | str, float | str]]) -> str:
    """Return the page: the text before the tables, then the tables of keys with and without an effect."""
    moving = {row: effects for row, effects in measured.items() if effects != (0, 0)}
    tables = [
        HEADING + "".join(line(row, *effects) for row, effects in group.items())
        for group in (moving, {row: effects for row, effects in measured.items() if row not in moving})
    ]
    return f"{before}{tables[0]}\n## {STILL}\n\n{tables[1]}"


def main(path: Path) -> None:
    """Measure every row and write the tables after the page's text."""
    measured = {}
    for row in rows():
        measured[row] = effect(llama_cpp, [row]), effect(transformers, [row])
        print(line(row, *measured[row]), end="", file=sys.stderr)
    before = path.read_text("utf-8").partition(HEADING[:20])[0]
    path.write_text(page(before, measured), "utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
