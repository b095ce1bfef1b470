"""What is kept from answer to answer saves work and changes no bit."""

from itertools import product

import numpy as np
import pytest

import llava_ref
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.generation.reuse import Reuse, cached_positions
from llava_ref.generation.sampling import Sampling
from llava_ref.generation.units import BATCH
from llava_ref.tracing.trace import Probe

from ..support.tiny_pair import VICUNA, Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (25, 25, 3), np.uint8)
N = 16
SCORED = Sampling(top_logprobs=2, logit_bias={2: -100.0})


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Two families: in the second the rows of a picture see one another, so that they are one unit."""
    llama = write_pair(tmp_path_factory.mktemp("llama"), Tiny(template=VICUNA, context=1500))
    vision = SiglipSpec(image_size=112)
    gemma = build_gemma3(tmp_path_factory.mktemp("gemma3"), Gemma3Spec(context=1500), vision)
    return {"llama": llama, "gemma3": (gemma.text, gemma.mmproj)}


@pytest.fixture(params=list(product(["llama", "gemma3"], ["torch", "numpy"])), ids="-".join)
def models(pairs, request):
    """One that keeps things, one that does not."""
    family, backend = request.param
    keeping, plain = (llava_ref.load(*pairs[family], backend=backend) for _ in range(2))
    assert keeping.tokens_per_image == N
    keeping.reuse = Reuse()
    return keeping, plain


def ask(model, prompt, *images, n=6, sampling=SCORED):
    stream = model.answer(model.raw_request(prompt, images), sampling, max_tokens=n)
    steps = list(stream.steps())
    return [(step.token_id, step.score) for step in steps], stream.reply


CONVERSATION = [
    ("the <image> is red", [RGB]),
    ("the <image> is red", [RGB]),  # all over again
    ("the <image> is red and blue", [RGB]),  # the same picture, other words behind it
    ("the <image> is red", [OTHER]),  # another picture
    ("the <image> and the <image> is red", [OTHER, RGB]),
    ("the <image>", [OTHER]),  # a prompt that ends where another goes on
    ("red " * 700, []),
    ("red " * 700 + "and blue", []),
    ("blue", []),
]


def test_no_bit_of_an_answer_changes(models):
    keeping, plain = models
    saved = 0
    for prompt, images in CONVERSATION:
        (found, reply), (expected, other) = (ask(model, prompt, *images) for model in (keeping, plain))
        assert found == expected  # token ids and every log-probability
        assert reply.text == other.text
        saved += reply.usage["prompt_tokens_details"]["cached_tokens"]
        assert other.usage["prompt_tokens_details"]["cached_tokens"] == 0
    assert saved > 600


def test_what_was_kept_is_counted(models):
    keeping, _ = models
    cached = [ask(keeping, p, *images)[1].usage["prompt_tokens_details"]["cached_tokens"] for p, images in CONVERSATION]
    head = keeping.raw_request("the <image>", [RGB]).token_ids.index(-1)
    assert cached[:6] == [0, head + N, head + N, head, 2 * N + head, head + N]
    assert cached[6:] == [0, BATCH, 0]


def test_logits_behind_a_rewind_are_those_of_a_fresh_sequence(models):
    model = models[0]
    rows = model.encode_image(RGB)
    parts = [[1, 5, 9], rows, list(range(10, 200)) * 3]
    session = model.session()
    session.feed(parts)
    for token in (4, 5, 6):
        session.feed([[token]])
    rest = session.rewind([[1, 5, 9], rows, [7, 8]])
    assert [len(part) for part in rest] == [2] and session.n_past == 3 + N
    assert (session.feed(rest) == model.session().feed([[1, 5, 9], rows, [7, 8]])).all()
    assert session.rewind([[1, 5], rows]) is not None and session.n_past == 0


def test_an_interrupted_sequence_can_go_on(models):
    """A client that goes away in the middle of a prompt leaves a cache that is whole as far as it goes."""
    keeping, plain = models

    class Stop(Probe):
        def see(self, x, at):
            if at.positions.start > 0:
                raise ZeroDivisionError
            return x

    session = keeping.session()
    parts = [[1, 5], [6, 7, 8]]
    with pytest.raises(ZeroDivisionError), keeping.probed(Stop(["blk.1.Vcur"])):
        session.feed(parts)
    assert session.n_past == 2
    assert (session.feed(session.rewind(parts)) == plain.session().feed(parts)).all()


def test_a_reader_who_leaves_keeps_the_prompt(models):
    keeping, _ = models
    stream = keeping.answer(keeping.raw_request("the <image> is red", [RGB]), SCORED, max_tokens=6)
    next(stream.steps())
    stream.close()
    assert ask(keeping, "the <image> is red", RGB)[1].usage["prompt_tokens_details"]["cached_tokens"] > N


def test_nothing_is_reused_while_somebody_watches(models):
    keeping, _ = models
    ask(keeping, "the <image> is red", RGB)
    with keeping.trace("vision.patch_embd", "embd") as trace:
        _, reply = ask(keeping, "the <image> is red", RGB, n=1)
    assert len(trace["embd"]) == len(keeping.raw_request("the <image> is red", [RGB]).token_ids)
    assert "vision.patch_embd" in trace and reply.usage["prompt_tokens_details"]["cached_tokens"] == 0
    with keeping.intervene({"projector.out": lambda x, at: x * 0}):
        ask(keeping, "the <image> is red", OTHER)
    plain = llava_ref.load(keeping.text.file.path, keeping.tower.file.path, backend=keeping.ops.name)
    assert ask(keeping, "the <image> is red", OTHER)[0] == ask(plain, "the <image> is red", OTHER)[0]


def test_a_sequence_that_was_edited_on_the_way_is_not_kept(models):
    """The edit is set after the prompt has run, so that nothing said at the beginning that it would come."""
    keeping, _ = models
    steps = keeping.answer(keeping.raw_request("the <image> is red", [RGB]), SCORED, max_tokens=4).steps()
    next(steps)
    with keeping.intervene({"blk.0.out": lambda x: x * 0}):
        next(steps)
    assert len(list(steps)) <= 2
    _, reply = ask(keeping, "the <image> is red", RGB, n=1)
    assert reply.usage["prompt_tokens_details"]["cached_tokens"] == N, "the picture's rows alone"


def test_rows_are_kept_within_their_bytes():
    reuse = Reuse(image_bytes=3 * 40)
    pictures = [np.full((2, 2, 3), level, np.uint8) for level in range(4)]
    for picture in pictures[:3]:
        reuse.keep_rows(picture, np.zeros((2, 5), np.float32))
    assert reuse.rows(pictures[0]) is not None  # used again, so that the second is the oldest
    reuse.keep_rows(pictures[3], np.zeros((2, 5), np.float32))
    assert [reuse.rows(picture) is not None for picture in pictures] == [True, False, True, True]
    reuse.keep_rows(pictures[1], np.zeros((100, 5), np.float32))
    assert all(reuse.rows(picture) is None for picture in pictures)
    assert reuse.rows(pictures[0].reshape(1, 4, 3)) is None
    reuse.clear()


def test_the_same_bytes_in_another_shape_are_another_picture():
    reuse = Reuse()
    picture = np.arange(24, dtype=np.uint8).reshape(2, 4, 3)
    reuse.keep_rows(picture, np.zeros((2, 5), np.float32))
    assert reuse.rows(picture.copy()) is not None
    assert reuse.rows(picture.reshape(4, 2, 3)) is None


def test_positions_that_were_kept():
    rows, parts = np.zeros((4, 2)), [[1, 2], None, [3, 4, 5]]
    parts[1] = rows
    assert [cached_positions(parts, [], n) for n in (0, 2, 3, 6, 8)] == [0, 2, 3, 6, 8]
    assert [cached_positions(parts, [rows], n) for n in (0, 2, 8)] == [4, 6, 8]
