"""Order stages and check cases, for all engines."""

from collections.abc import Mapping

import numpy as np

from llava_ref.models.order import place

from .reference import Case, ReferenceError

IMAGE = "<image>"


def check_pictures(case: Case) -> None:
    """Check that the prompt has a place for every picture, and that pictures come with an mmproj file.

    Raises ReferenceError."""
    places = case.prompt.count(IMAGE)
    if places != len(case.images):
        raise ReferenceError("prompt", IMAGE, f"{places} places for {len(case.images)} pictures, expected one for each")
    if case.images and case.mmproj is None:
        raise ReferenceError("prompt", IMAGE, "pictures without an mmproj file")


def ordered(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Sort stages in the order in which this project computes them: picture by picture, then the sequence."""
    return {name: arrays[name] for name in sorted(arrays, key=place)}
