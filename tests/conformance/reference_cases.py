"""Share between the tests of the two adapters: a pair with two pictures, and this project's own run of it."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.tracing.distance import rel_rms

EVERYTHING = ("*", "*kq_soft_max")
PROMPT = "what is <image>\nthe color<image> of a"
OF_PICTURES = ("image.", "vision.", "projector.")


def build(folder: Path, text: TextSpec, vision: VisionSpec, prompt: str = PROMPT) -> Case:
    """Make a random pair and as many random pictures as the prompt has places, no two of one shape."""
    pair = pairs.build(folder, text, vision)
    rng = np.random.default_rng(3)
    images = tuple(folder / f"{i}.png" for i in range(prompt.count("<image>")))
    for i, path in enumerate(images):
        Image.fromarray(rng.integers(0, 256, (31 + 20 * i, 44, 3), np.uint8)).save(path)
    return Case(pair.text, pair.mmproj, images, prompt)


def model_of(case: Case, profile: str) -> Llava:
    return load(case.text, case.mmproj, backend="numpy", threads=1, profile=profile)


def trace(model: Llava, case: Case) -> dict[str, np.ndarray]:
    """Return every stage of this project's run of the whole case."""
    with model.trace(*EVERYTHING) as seen:
        model.request_logits(model.raw_request(case.prompt, case.images))
    return dict(seen)


def differing(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray], bound: float) -> list[str]:
    """List the stages of another shape or type, or further apart than the bound."""
    return [
        name
        for name in theirs
        if ours[name].shape != theirs[name].shape
        or ours[name].dtype != theirs[name].dtype
        or not rel_rms(ours[name], theirs[name]) <= bound
    ]


def worst(ours: Mapping[str, np.ndarray], theirs: Mapping[str, np.ndarray]) -> float:
    return max(rel_rms(ours[name], theirs[name]) for name in theirs)
