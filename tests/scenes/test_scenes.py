"""Test scenes and questions: the same pixels everywhere, right answers, words of the embedded vocabulary."""

import hashlib
import re
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest

import llava_ref
from llava_ref import gguf
from llava_ref.scenes import (
    COLOURS,
    KINDS,
    SHAPES,
    Scene,
    Thing,
    fresh_questions,
    fresh_scene,
    questions,
    sample_scene,
    training_rng,
)
from llava_ref.scenes.questions import CAPTIONS_ELSEWHERE
from llava_ref.tokenizer.tokenizer import Tokenizer

SCENES = 300
PIXELS = "db1f5f0ef183d12dc0f0527d8e89e490ead2c40a8f85b708e4d1f4c8be7df81b"  # sha256 of 40 pictures


def scenes() -> list[tuple[Scene, np.random.Generator]]:
    return [fresh_scene(11, i) for i in range(SCENES)]


def test_pixels_are_the_same_on_every_machine():
    digest = hashlib.sha256()
    for i in range(40):
        image = fresh_scene(5, i)[0].draw()
        digest.update(repr(image.size).encode() + image.tobytes())
    assert digest.hexdigest() == PIXELS


def test_a_picture_does_not_depend_on_the_number_of_pictures():
    few, many = list(fresh_questions(3, 4)), list(fresh_questions(6, 4))
    for (image, question), (same_image, same_question) in zip(few, many[:3], strict=True):
        assert image.tobytes() == same_image.tobytes() and question == same_question


def test_seeds_and_streams_differ():
    evaluation = {repr(fresh_scene(seed, i)[0]) for seed in (0, 1) for i in range(50)}
    training = {repr(sample_scene(training_rng(seed, i))) for seed in (0, 1) for i in range(50)}
    assert len(evaluation) == len(training) == 100 and not evaluation & training


def test_things_are_drawn_in_their_colour_inside_the_picture_and_apart():
    for scene, _ in scenes()[:100]:
        pixels = np.asarray(scene.draw()).astype(int)
        covered = np.zeros(pixels.shape[:2], int)
        for t in scene.things:
            mask = t.mask()
            y, x = np.argwhere(mask > 0).T + [[t.y - mask.shape[0] // 2], [t.x - mask.shape[1] // 2]]
            assert min(y.min(), x.min()) >= 0 and y.max() < pixels.shape[0] and x.max() < pixels.shape[1], t
            covered[y, x] += 1
            solid = pixels[y, x][mask[mask > 0] == 255]
            assert len(solid) > 60 and (solid == t.rgb).all(), t
        assert covered.max() == 1, scene
        assert (pixels[covered == 0] == scene.background).all()


def rgb_distance(a: tuple[int, ...], b: tuple[int, ...]) -> int:
    return max(abs(x - y) for x, y in zip(a, b, strict=True))


def test_a_shade_is_nearest_to_its_own_colour():
    for scene, _ in scenes():
        for t in scene.things:
            assert min(COLOURS, key=lambda name: rgb_distance(COLOURS[name], t.rgb)) == t.colour


def matching(scene: Scene, words: str) -> list[Thing]:
    """Return the things that fit a phrase such as "the red circle", "circles", "red shapes" or "the word"."""
    fitting = list(scene.things)
    for word in words.split():
        singular = {"crosses": "cross"}.get(word, word[:-1] if word.endswith("s") and word != "cross" else word)
        if word in COLOURS:
            fitting = [t for t in fitting if t.colour == word]
        elif singular in ("shape", "digit", "word"):
            fitting = [t for t in fitting if t.kind == singular]
        elif singular in SHAPES:
            fitting = [t for t in fitting if t.name == singular]
        else:
            assert word in ("the", "a", "an"), words
    return fitting


def only(scene: Scene, words: str) -> Thing:
    """Return the one thing that fits."""
    (thing,) = matching(scene, words)
    return thing


def at(scene: Scene, place: str) -> list[Thing]:
    """Return the things in a cell, by their positions in pixels."""
    row = 0 if "top" in place else scene.rows - 1 if "bottom" in place else 1
    column = 0 if "left" in place else scene.columns - 1 if "right" in place else 1
    wide = [t for t in scene.things if t.kind == "word" and t.y // 80 == row]
    assert not wide or column == 1, "a word's row has no corners"
    return wide or [t for t in scene.things if (t.y // 80, t.x // 80) == (row, column)]


def in_words(t: Thing, size: str = "", colour: str = "") -> str:
    if t.kind != "shape":
        return " ".join(f"the {colour} {t.kind} {t.name}".split())
    words = f"{size} {t.colour} {t.name}".strip()
    return f"{'an' if words[0] in 'aeiou' else 'a'} {words}"


def caption(scene: Scene) -> str:
    phrases = [in_words(t, t.size, t.colour) for t in sorted(scene.things, key=lambda t: (t.y // 80, t.x // 80))]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def place_of(scene: Scene, t: Thing) -> str:
    width, height = 80 * scene.columns, 80 * scene.rows
    vertical = "top" if t.y < 80 else "bottom" if t.y >= height - 80 else ""
    horizontal = "" if t.kind == "word" else "left" if t.x < 80 else "right" if t.x >= width - 80 else ""
    return f"{vertical} {horizontal}".strip() or "centre"


CHECKS = {  # pattern of the question: the answer, from the scene and the groups
    r"(?:What|Which) colour is (.*)\?|Tell me the colour of (.*)\.": lambda s, x: only(s, x).colour,
    r"(?:What|Which) shape is (.*)\?": lambda s, x: only(s, f"{x} shape").name,
    r"What is the (\w+ shape)\?": lambda s, x: only(s, x).name,
    r"How many (.*) are there\?|Count the (.*)\.": lambda s, x: str(len(matching(s, x))),
    r"(?:Is there|Can you see) (.*)\?": lambda s, x: "yes" if matching(s, x) else "no",
    r"Where is (.*)\?|Tell me where (.*) is\.": lambda s, x: place_of(s, only(s, x)),
    r"What (?:is|do you see) at the (.*)\?": lambda s, x: in_words(at(s, x)[0]) if at(s, x) else "nothing",
    r"Is (.*) small or large\?|How big is (.*)\?": lambda s, x: "large" if only(s, x).radius > 24 else "small",
    r"Which (digit) is shown\?|What is the (digit)\?|Read the (digit)\.": lambda s, x: only(s, x).name,
    r"What does the (word) say\?|What is the (word)\?|Read the (word)\.": lambda s, x: only(s, x).name,
    r"(Describe|What is in|what is in) (?:the|this) (?:picture|image)[.?]?": lambda s, x: caption(s),
    r"(Can you describe|What['’]s in) this image\?|(What do you see)\?": lambda s, x: caption(s),
}


def test_answers_follow_from_the_scene():
    counts = Counter()
    for scene, rng in scenes():
        for q in questions(scene, rng, 8):
            matches = [(m, answer) for pattern, answer in CHECKS.items() if (m := re.fullmatch(pattern, q.text))]
            assert len(matches) == 1, q
            m, answer = matches[0]
            assert answer(scene, next(filter(None, m.groups()))) == q.answer, (q, scene)
            counts[q.kind] += 1
    assert set(counts) == set(KINDS) and min(counts.values()) >= 30


def test_no_kind_and_no_answer_dominates():
    asked = [q for _, q in fresh_questions(1000, 8)]
    kinds, answers = Counter(q.kind for q in asked), Counter(q.answer for q in asked)
    assert set(kinds) == set(KINDS) and max(kinds.values()) < 250
    assert max(answers.values()) < 150
    assert 0.35 < answers["yes"] / (answers["yes"] + answers["no"]) < 0.65


def test_weights_choose_the_kinds():
    scene, rng = fresh_scene(0, 0)
    weights = dict.fromkeys(KINDS, 0) | {"caption": 1}
    assert {q.kind for q in questions(scene, rng, 5, weights)} == {"caption"}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(gguf.read(llava_ref.embedded()[0]))


def test_the_vocabulary_has_every_word(tokenizer):
    for scene, rng in scenes()[:150]:
        for q in questions(scene, rng, 8):
            for text in (f"{q.text} ASSISTANT:" if q.text not in CAPTIONS_ELSEWHERE else "", q.answer):
                pieces = [tokenizer.text_of(i) for i in tokenizer.encode(text)]
                assert not [p for p in pieces if p.startswith("<")], (text, pieces)
                assert {f"▁{word}" for word in re.findall(r"\w+", text)} <= set(pieces), pieces


def test_the_generator_needs_no_torch():
    code = "import sys, llava_ref.scenes; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
