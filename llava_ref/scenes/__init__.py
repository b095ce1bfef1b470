"""Draw pictures of coloured shapes, digits and short words, and ask questions with exactly one right answer.

    for image, question in fresh_questions(n=10, seed=0):    # PIL image, Question(kind, text, answer)
        ...

The seed alone determines everything, on every machine: integers and IEEE arithmetic, a stroke font of our own.
`fresh_questions` draws from a stream that the training of the embedded model never uses. Imports no torch.
"""

from .asking import WAYS, Asked, fresh_asked
from .questions import KINDS, Question, questions
from .scene import COLOURS, SHAPES, SIZES, WORDS, Scene, Thing, sample_scene
from .stream import fresh_questions, fresh_scene, training_rng

__all__ = [
    "Asked",
    "COLOURS",
    "KINDS",
    "SHAPES",
    "SIZES",
    "WAYS",
    "WORDS",
    "Question",
    "Scene",
    "Thing",
    "fresh_asked",
    "fresh_questions",
    "fresh_scene",
    "questions",
    "sample_scene",
    "training_rng",
]
