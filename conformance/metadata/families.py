"""List the keys that only some families read, and measure how far each moves the logits of a prompt with a picture.

`python -m llava_ref.conformance.metadata.families` prints the table of docs/metadata.md.
"""

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ..engines.hf.engine import Transformers
from ..engines.llama_cpp.engine import LlamaCpp
from ..engines.reference import Case, ReferenceError
from ..pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from ..pairs.idefics3 import Idefics3Spec, build_idefics3
from ..pairs.internvl import InternVLSpec, build_internvl
from ..pairs.pairs import Pair, TextSpec
from ..pairs.pixtral import PixtralSpec, build_pixtral
from ..pairs.qwen2vl import QwenTextSpec, QwenVisionSpec, build_qwen2vl
from .effects import cell, moved

PROMPT = "what is the color of a large small <image> red circle and how many blue"
WIDTH, HEIGHT = 131, 60
Half = Literal["text", "vision"]
TILES = Idefics3Spec(image_size=28, patch_size=7, longest=112)
FAMILIES: Mapping[str, tuple[Callable[[Path, Any, Any], Pair], Any, Any]] = {
    "Gemma 3": (build_gemma3, Gemma3Spec(), SiglipSpec()),
    "Qwen2-VL": (build_qwen2vl, QwenTextSpec(), QwenVisionSpec(gated=False)),
    "Qwen2.5-VL": (build_qwen2vl, QwenTextSpec(), QwenVisionSpec(patch_size=7)),
    "SmolVLM": (build_idefics3, TextSpec(context=1024), TILES),
    "InternVL": (build_internvl, QwenTextSpec(sections=()), InternVLSpec()),
    "Pixtral": (build_pixtral, TextSpec(context=1024), PixtralSpec()),
}


@dataclass(frozen=True, slots=True)
class FamilyKey:
    """Describes a key with a value, and the field of the random pair's specification that sets it."""

    family: str
    key: str
    half: Half
    field: str
    value: Any
    quirk: str | None = None

    @property
    def name(self) -> str:
        return f"{self.key} in {self.family}"


ROWS = (
    FamilyKey("Gemma 3", "gemma3.attention.sliding_window", "text", "window", 3),
    FamilyKey("Gemma 3", "gemma3.attention.sliding_window_pattern", "text", "pattern", 3),
    FamilyKey("Gemma 3", "gemma3.rope.freq_base_swa", "text", "rope_base_swa", 500.0),
    FamilyKey("Gemma 3", "clip.vision.projector.scale_factor", "vision", "merge", 3),
    FamilyKey("Qwen2-VL", "qwen2vl.rope.dimension_sections", "text", "sections", (1, 3, 2, 0)),
    FamilyKey("Qwen2-VL", "qwen2vl.attention.layer_norm_rms_epsilon", "text", "eps", 0.05, "text_eps"),
    FamilyKey("Qwen2-VL", "clip.vision.image_size", "vision", "image_size", 84),
    FamilyKey("Qwen2.5-VL", "clip.vision.n_wa_pattern", "vision", "pattern", 3),
    FamilyKey("SmolVLM", "clip.vision.preproc_image_size", "vision", "longest", 56),
    FamilyKey("SmolVLM", "clip.vision.projector.scale_factor", "vision", "merge", 4),
    FamilyKey("InternVL", "clip.vision.preproc_max_tiles", "vision", "most_tiles", 1),
    FamilyKey("InternVL", "clip.vision.preproc_min_tiles", "vision", "least_tiles", 3),
    FamilyKey("Pixtral", "clip.vision.image_size", "vision", "image_size", 48, "picture_size"),
    FamilyKey("Pixtral", "clip.vision.spatial_merge_size", "vision", "merge", 2),
)


def case(folder: Path, family: str, row: FamilyKey | None = None) -> Case:
    """Write a family's pair, with a row's key changed, and a picture."""
    build, *specs = FAMILIES[family]
    if row is not None:
        at = ("text", "vision").index(row.half)
        specs[at] = replace(specs[at], **{row.field: row.value})
    pair, picture = build(folder, *specs), folder / "picture.png"
    rgb = np.random.default_rng(1).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
    Image.fromarray(rgb).save(picture)
    return Case(pair.text, pair.mmproj, (picture,), PROMPT)


def logits(engine: str, c: Case) -> np.ndarray:
    """Return the logits of a whole prompt, (T, V)."""
    run = (LlamaCpp() if engine == "llama.cpp" else Transformers()).run(c)
    found: np.ndarray = run.stages["result_output"]
    return found


@cache
def unchanged(engine: str, family: str) -> np.ndarray:
    """Return an engine's logits of a family's pair as it is."""
    with tempfile.TemporaryDirectory() as folder:
        return logits(engine, case(Path(folder), family))


def effect(engine: str, row: FamilyKey, c: Case) -> float | str:
    """Return how far the changed files of `c` move an engine's logits, or that its process ends on them."""
    try:
        return moved(logits(engine, c), unchanged(engine, row.family))
    except ReferenceError as error:
        if error.field != "process":
            raise
        return "aborts"


def line(row: FamilyKey, llama: float | str, hf: float | str) -> str:
    """Return a row of the page's table."""
    value = list(row.value) if isinstance(row.value, tuple) else row.value
    fate = f"quirk `{row.quirk}`" if row.quirk else "obeyed"
    fate = fate if row.quirk or (llama, hf) != (0, 0) else "no effect"
    return f"| {row.family} | `{row.key}` | `{value}` | {cell(llama)} | {cell(hf)} | {fate} |"


def main() -> None:
    """Measure every row and print the table."""
    print("| family | key | value | llama.cpp b11549 | transformers | here |\n|---|---|---|---|---|---|")
    for row in ROWS:
        with tempfile.TemporaryDirectory() as folder:
            c = case(Path(folder), row.family, row)
            print(line(row, effect("llama.cpp", row, c), effect("hf", row, c)), flush=True)


if __name__ == "__main__":
    main()
