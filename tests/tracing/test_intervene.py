"""Edits are addressed by position: a function sees a prompt whole, whatever it is made of, then each token."""

from contextlib import ExitStack

import numpy as np
import pytest
import torch

import llava_ref
from llava_ref.errors import ParameterError
from llava_ref.generation.reuse import Reuse
from llava_ref.generation.sampling import Sampling
from llava_ref.tracing.trace import ON_REQUEST, At

from ..support.tiny_pair import VICUNA, Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (25, 25, 3), np.uint8)
PROMPTS = {
    "text": ("red and blue", []),
    "a picture": ("red <image> and blue", [RGB]),
    "two pictures": ("<image> red <image>", [RGB, OTHER]),
    "long": ("red <image>" + " blue" * 700, [RGB]),
}
NO_END = Sampling(logit_bias={2: -100})


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, context=1200))


@pytest.fixture(scope="module", params=["torch", "numpy", "torch ggml"])
def model(pair, request):
    backend, _, precision = request.param.partition(" ")
    return llava_ref.load(*pair, backend=backend, precision=precision or "exact", threads=1)


@pytest.fixture(scope="module")
def one(pair):
    return llava_ref.load(*pair, backend="numpy")


def silence_last(x):
    x[-1] *= 0
    return x


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
def test_the_last_row_is_the_prompt_s_last_position(model, prompt):
    with model.intervene({"blk.1.out": silence_last}), model.trace("blk.1.out") as edited:
        model.logits(*prompt)
    with model.trace("blk.1.out") as plain:
        model.logits(*prompt)
    assert (edited["blk.1.out"][-1] == 0).all()
    assert (edited["blk.1.out"][:-1] == plain["blk.1.out"][:-1]).all()


@pytest.mark.parametrize("prompt", PROMPTS.values(), ids=PROMPTS)
@pytest.mark.parametrize("glob", ["*", f"*{ON_REQUEST}"])
def test_an_edit_that_changes_nothing_changes_no_bit(model, prompt, glob):
    """Products and attention are still done a unit at a time."""
    with ExitStack() as stack:
        if glob != "*":  # these weights are computed apart in either run
            stack.enter_context(model.trace(glob))
        request = model.raw_request(*prompt)
        plain, each = model.request_logits(request), list(model.each_logits(request))
        with model.intervene({glob: lambda x: x}):
            assert (model.request_logits(request) == plain).all()
            assert (np.stack(list(model.each_logits(request))) == np.stack(each)).all()
        told = model.answer(request, NO_END, max_tokens=3).finish()
        with model.intervene({glob: lambda x: x}):
            assert model.answer(request, NO_END, max_tokens=3).finish().token_ids == told.token_ids


def test_a_function_meets_the_prompt_once_and_then_each_token(one):
    met = []

    def note(x, at):
        met.append((at.name, at.positions, len(x)))
        return x

    request = one.raw_request(*PROMPTS["long"])
    n = len(request.token_ids)
    with one.intervene({"blk.0.Kcur": note}):
        one.answer(request, NO_END, max_tokens=3).finish()
    assert met == [("blk.0.Kcur", range(a, b), b - a) for a, b in ((0, n), (n, n + 1), (n + 1, n + 2))]


def test_a_position_of_the_sequence_is_met_in_generation_too(one):
    """The row of position `target` is edited whether it stands in the prompt or comes later."""
    request = one.raw_request(*PROMPTS["a picture"])
    n = len(request.token_ids)
    for target in (0, n - 1, n, n + 1):

        def put(x, at, target=target):
            if target in at.positions:
                x[target - at.positions.start] = 7
            return x

        with one.intervene({"blk.0.out": put}), one.trace("blk.0.out") as trace:
            one.answer(request, NO_END, max_tokens=3).finish()
        found = np.flatnonzero((trace["blk.0.out"] == 7).all(1))
        assert found.tolist() == [target] and len(trace["blk.0.out"]) == n + 2


@pytest.mark.parametrize("stage", ["result_norm", "result_output"])
def test_the_logits_of_each_position_are_met_whole(one, stage):
    """As scores of a prompt are computed: some rows at once, but not where somebody edits them."""
    request = one.raw_request(*PROMPTS["long"])
    plain = list(one.each_logits(request))
    with one.intervene({stage: silence_last}):
        edited = list(one.each_logits(request))
    assert (edited[-1] == 0).all() and all((a == b).all() for a, b in zip(edited[:-1], plain[:-1], strict=True))


def test_attention_weights_are_met_whole(one):
    """All heads by all positions, and a position that is made to look ahead does."""
    shapes = []

    def first_looks_at_last(x):
        shapes.append(x.shape)
        x[:, 0] = 0
        x[:, 0, -1] = 1
        return x

    request = one.raw_request(*PROMPTS["two pictures"])
    n, heads = len(request.token_ids), one.text.config.n_head
    with one.intervene({f"blk.0.{ON_REQUEST}": first_looks_at_last}):
        with one.trace("blk.0.Vcur", "blk.0.kqv_out") as trace:
            one.request_logits(request)
    assert shapes == [(heads, n, n)]
    per_group = heads // one.text.config.n_head_kv
    values = trace["blk.0.Vcur"][-1].reshape(-1, one.text.config.head_size).repeat(per_group, 0).ravel()
    np.testing.assert_allclose(trace["blk.0.kqv_out"][0], values, rtol=0, atol=1e-6)


def test_a_picture_s_stages_are_met_once_a_picture(one):
    met: list[At] = []
    with one.intervene({"vision.features": lambda x, at: met.append(at) or x}):
        one.logits(*PROMPTS["two pictures"])
    assert met == [At("vision.features", None, 0), At("vision.features", None, 1)]


def test_an_edit_in_place_stays_in_its_run(model):
    """The picture of a request, the rows it became and arrays already traced are not the function's to change."""
    request = model.raw_request(*PROMPTS["a picture"])
    plain, rgb = model.request_logits(request), request.images[0].rgb.copy()

    def blacken(x):
        x[...] = 0
        return x

    with model.intervene({"image.rgb": blacken, "image.seen": blacken, "vision.features": blacken}):
        with model.trace("vision.blk.*.layer_out") as trace:
            model.request_logits(request)
    assert (request.images[0].rgb == rgb).all() and (model.request_logits(request) == plain).all()
    assert all(array.any() for array in trace.values())


def test_the_values_an_edit_keeps_do_not_change_later(one):
    kept = []
    with one.intervene({"blk.0.out": lambda x: kept.append(x) or x * 2}):
        one.logits("red")
    with one.trace("blk.0.out") as trace:
        one.logits("red")
    assert (kept[0] == trace["blk.0.out"]).all()


class Scale:
    """A function as an object."""

    def __call__(self, x, at):
        return x * 2


@pytest.mark.parametrize(
    "function",
    [
        lambda x: x * 2,
        lambda x, at: x * 2,
        lambda x, at=None: x * 2 if at is not None else x,
        lambda x, factor=2: x * factor,
        Scale(),
        lambda *arguments: arguments[0] * 2,
    ],
    ids=["x", "x, at", "x, at=None", "x, factor=2", "an object", "*arguments"],
)
def test_functions_of_one_and_of_two_arguments(one, function):
    with one.trace("blk.0.out") as plain:
        one.logits("red")
    with one.intervene({"blk.0.out": function}), one.trace("blk.0.out") as edited:
        one.logits("red")
    assert (edited["blk.0.out"] == plain["blk.0.out"] * 2).all()


def test_functions_of_numpy_and_torch(pair, one):
    for model, function in (
        (one, np.negative),
        (llava_ref.load(*pair), torch.neg),
        (one, lambda x: np.multiply(x, -1)),
    ):
        with model.intervene({"blk.0.out": function}), model.trace("blk.0.out") as edited:
            model.logits("red")
        with model.trace("blk.0.out") as plain:
            model.logits("red")
        assert (edited["blk.0.out"] == -plain["blk.0.out"]).all()


@pytest.mark.parametrize(
    "function, says",
    [
        (lambda: 1, "a function of ()"),
        (lambda x, *, at: x, "a function of (x, *, at)"),
        (lambda x, at, more: x, "a function of (x, at, more)"),
        (3.0, "float, expected a function"),
        (None, "NoneType, expected a function"),
        (np.zeros(3), "ndarray, expected a function"),
    ],
)
def test_what_is_no_function_of_an_array_is_refused(one, function, says):
    with pytest.raises(ParameterError, match="intervene: 'embd': ") as caught, one.intervene({"embd": function}):
        pass
    assert says in str(caught.value)


@pytest.mark.parametrize(
    "function, says",
    [
        (lambda x: np.asarray(x, np.float64), "returned float64 ["),
        (lambda x: np.asarray(x, np.float16), "returned float16 ["),
        (lambda x: x[-1:], "returned float32 [1, "),
        (lambda x: x[None], "returned float32 [1, "),
        (lambda x: x.tolist(), "returned list"),
        (lambda x: None, "returned NoneType"),
        (lambda x: (x,), "returned tuple"),
    ],
)
def test_what_a_function_gives_is_held_to_what_it_got(model, function, says):
    with pytest.raises(ParameterError, match="intervene: blk.0.out: the function ") as caught:
        with model.intervene({"blk.0.out": function}):
            model.logits("red and blue")
    assert says in str(caught.value)


def test_bad_numbers_of_an_edit_are_said(model):
    for bad in (np.nan, np.inf):
        with pytest.raises(ParameterError, match="intervene: result_output: holds NaN or infinity, which an edit"):
            with model.intervene({"blk.0.out": lambda x, bad=bad: x * 0 + bad}):
                model.logits("red")


def test_an_error_of_the_function_comes_through_and_leaves_the_model_whole(model):
    plain = model.logits(*PROMPTS["a picture"])
    with pytest.raises(ZeroDivisionError), model.intervene({"blk.1.Kcur": lambda x: 1 / 0}):
        model.logits(*PROMPTS["a picture"])
    assert (model.logits(*PROMPTS["a picture"]) == plain).all()


@pytest.fixture
def keeping(pair):
    model = llava_ref.load(*pair, backend="numpy")
    model.reuse = Reuse()
    return model


def test_edited_rows_are_kept_for_nobody_and_kept_rows_are_edited(keeping, one):
    request, zero = (
        keeping.raw_request(*PROMPTS["long"]),
        {"projector.out": lambda x: x * 0, "blk.0.Vcur": lambda x: -x},
    )
    plain = keeping.answer(request, NO_END, max_tokens=4).finish()
    with keeping.intervene(zero):
        edited = keeping.answer(request, NO_END, max_tokens=4).finish()
    with one.intervene(zero):
        assert one.answer(request, NO_END, max_tokens=4).finish().token_ids == edited.token_ids
    again = keeping.answer(request, NO_END, max_tokens=4).finish()
    assert again.token_ids == plain.token_ids != edited.token_ids


def test_an_answer_edited_in_its_middle_is_kept_for_nobody(keeping, one):
    """An answer begun before the block and continued in it has keys and values of both kinds."""
    request = keeping.raw_request(*PROMPTS["text"])
    stream = keeping.answer(request, NO_END, max_tokens=6)
    steps = stream.steps()
    first = next(steps).token_id
    with keeping.intervene({"blk.*.Vcur": lambda x: x * 0 + 3}):
        more = [next(steps).token_id for _ in range(4)]
    stream.finish()
    longer = [*request.token_ids, first, *more, 5]
    assert keeping.reuse.take_session() is None
    ask = [model.session().feed([longer]) for model in (keeping, one)]
    assert (ask[0] == ask[1]).all()
