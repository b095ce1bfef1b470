"""Streams of scenes. Training and evaluation never share one: whatever the seed, their spawn keys differ."""

from collections.abc import Iterator

import numpy as np
from PIL import Image

from .questions import Question, questions
from .scene import Scene, sample_scene

_TRAINING, _EVALUATION = 0, 1


def training_rng(seed: int, index: int) -> np.random.Generator:
    """The stream that training draws picture `index` from."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_TRAINING, index)))


def fresh_scene(seed: int, index: int) -> tuple[Scene, np.random.Generator]:
    """Scene `index` of an evaluation stream, and the generator to draw its questions with."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(_EVALUATION, index)))
    return sample_scene(rng), rng


def fresh_questions(n: int, seed: int) -> Iterator[tuple[Image.Image, Question]]:
    """`n` pictures with one question each. Any seed >= 0; picture i does not depend on n."""
    for index in range(n):
        scene, rng = fresh_scene(seed, index)
        yield scene.draw(), questions(scene, rng, 1)[0]
