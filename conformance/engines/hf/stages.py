"""Collect this project's stages with forward hooks on transformers' modules, at the points that a family names."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from llava_ref.tracing.trace import Probe

from . import (
    gemma3_stages,
    idefics3_stages,
    internvl_stages,
    llava_stages,
    mllama_stages,
    pixtral_stages,
    qwen2vl_stages,
)  # fmt: skip
from .model import HfModel
from .points import Point

FAMILIES: dict[str, Any] = {
    "llava": llava_stages,
    "llava_next": llava_stages,
    "gemma3": gemma3_stages,
    "idefics3": idefics3_stages,
    "internvl": internvl_stages,
    "pixtral": pixtral_stages,
    "mistral3": pixtral_stages,
    "mllama": mllama_stages,
    "qwen2vl": qwen2vl_stages,
    "qwen2_5_vl": qwen2vl_stages,
}


class HfWatch:
    """Collect stages: `with HfWatch(model, globs) as watch:` one forward pass, then `watch.arrays`, by name.

    `globs` as in `llava_ref.tracing.trace.Probe`: attention weights only if a pattern names `kq_soft_max`."""

    def __init__(self, model: HfModel, globs: Sequence[str]) -> None:
        self._probe, self._model = Probe(globs), model
        self._handles: list[Any] = []
        self.arrays: dict[str, np.ndarray] = {}

    def __enter__(self) -> "HfWatch":
        family = FAMILIES[self._model.family]
        points = [(False, point) for point in family.decoder(self._model)]
        if self._model.vision is not None:
            points += [(True, point) for point in family.tower(self._model)]
        for of_pictures, point in points:
            if self._probe.wants(point.name):
                self._handles.append(self._hook(point, of_pictures))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self._handles:
            handle.remove()

    def add(self, name: str, array: np.ndarray) -> None:
        """Add a stage that no module shows."""
        if self._probe.wants(name.partition("#")[0]):
            self.arrays[name] = array

    def _hook(self, point: Point, of_pictures: bool) -> Any:
        def see(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            batch = point.pick((*args, *kwargs.values()), output)
            for i, x in enumerate(batch if of_pictures else batch[:1]):
                name = f"{point.name}#{i}" if i else point.name
                self.arrays[name] = point.change(x.detach()).float().numpy().copy()

        return point.module.register_forward_hook(see, with_kwargs=True)
