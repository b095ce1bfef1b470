"""What adapters share: the order of stages, and the check that a case can be run at all."""

from collections.abc import Mapping

import numpy as np

from llava_ref.models import stages

from .reference import Case, ReferenceError

IMAGE = "<image>"
TOWER = (*stages.IMAGE, *stages.TOWER_IN), stages.TOWER_BLOCK, stages.TOWER_OUT
TEXT = stages.TEXT_IN, stages.TEXT_BLOCK, stages.TEXT_OUT


def check_pictures(case: Case) -> None:
    """ReferenceError unless the prompt has a place for every picture, and an mmproj file to see them with."""
    places = case.prompt.count(IMAGE)
    if places != len(case.images):
        raise ReferenceError("prompt", IMAGE, f"{places} places for {len(case.images)} pictures, expected one for each")
    if case.images and case.mmproj is None:
        raise ReferenceError("prompt", IMAGE, "pictures without an mmproj file")


def ordered(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Stages in the order in which this project computes them: picture by picture, then the sequence."""
    return {name: arrays[name] for name in sorted(arrays, key=_place)}


def _place(name: str) -> tuple[bool, int, int, int, int]:
    base, _, number = name.partition("#")
    in_text = not stages.of_picture(base)
    before, block, after = ([stage.name for stage in part] for part in (TEXT if in_text else TOWER))
    run = in_text, int(number or 0)
    if base in before:
        return *run, 0, 0, before.index(base)
    if base in after:
        return *run, 2, 0, after.index(base)
    _, layer, part = base.rsplit(".", 2)
    return *run, 1, int(layer), block.index(part)
