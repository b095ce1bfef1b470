"""Provide streams of scenes. Training and evaluation never share one: their spawn keys differ whatever the seed."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from .questions import Question, questions
from .scene import Scene, sample_scene

_TRAINING, _EVALUATION = 0, 1


def training_rng(seed: int, index: int) -> np.random.Generator:
    """Return the generator from which training draws picture `index`."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TRAINING, index)))


def fresh_scene(seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Return scene `index` of an evaluation stream, and the generator for its questions."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_EVALUATION, index)))
    return sample_scene(rng), rng


def fresh_questions(n: int, seed: int) -> Iterator[tuple[Image.Image, Question]]:
    """Yield `n` pictures with one question each, for any seed >= 0. Picture i does not depend on n."""
    for index in range(n):
        scene, rng = fresh_scene(seed, index)
        yield scene.draw(), questions(scene, rng, 1)[0]
