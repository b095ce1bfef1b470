"""Whole models on the fast operations of a CUDA device: against float32, and the fused step against `forward`."""

import gc

import numpy as np
import pytest
import torch

pytest.importorskip("triton")

from PIL import Image

from llava_ref import embedded, load
from llava_ref.conformance.compare.conform import conform
from llava_ref.conformance.engines.reference import Case
from llava_ref.conformance.engines.this import ThisProject
from llava_ref.conformance.pairs.pairs import Pair, TextSpec, VisionSpec, build
from llava_ref.errors import NumericsError
from llava_ref.generation.session import Session
from llava_ref.ops.cuda.cache import Slots, StaticCache
from llava_ref.tracing.trace import Probes, Trace

from ..support.cuda_models import EVERYTHING, fast
from ..support.fast_pairs import PICTURE, PROMPT, TEXTS, builder
from ..support.helpers import close, rand, rel_rms
from ..support.triton_device import DEVICE

LONG = PROMPT * 7  # more rows than the fused product takes where there are copies
TOKENS = [12, 200]


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    """Return a function that builds a pair once."""
    return builder(tmp_path_factory.mktemp)


NAMES = [*(name for name in TEXTS if "NVFP4" not in name), "gemma3"]
STEPPED = [name for name in NAMES if "BF16" not in name and "F32" not in name]  # each takes seconds


@pytest.mark.parametrize("name", NAMES)
def test_a_prompt_is_within_float16_of_float32(pairs, name):
    exact, quick = (load(pairs(name).text).session(), fast(pairs(name)).session())
    want, got = (session.feed([PROMPT], all_logits=True) for session in (exact, quick))
    assert 1e-5 < rel_rms(got, want) < 2e-2


@pytest.mark.parametrize("name", STEPPED)
def test_a_step_is_what_forward_computes(pairs, name):
    """The same tokens one by one: by the fused step, and by `forward` because somebody watches."""
    model = fast(pairs(name))
    watched, stepped = Session(model.text, probes=Probes(Trace(("embd",), model.ops))), model.session()
    for session in (watched, stepped):
        session.feed([PROMPT])
    for token in TOKENS:
        want, got = watched.next([[token]]), stepped.next([[token]])
        assert isinstance(want, np.ndarray) and not isinstance(got, np.ndarray)
        close(np.asarray(got), want, 1e-3)
        assert got.finite and got.ids[got.values.argmax()] == want.argmax()
        assert abs(got.total - torch.logsumexp(torch.tensor(want), 0).item()) < 1e-2
    assert watched.n_past == stepped.n_past == len(PROMPT) + len(TOKENS)


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_steps_are_as_exact_as_their_cache(pairs, name):
    """Few rows are multiplied to 5e-5: what is left against float32 is the float16 of keys and values."""
    exact, quick = load(pairs(name).text).session(), fast(pairs(name)).session()
    for token in PROMPT[:4]:
        want, got = exact.next([[token]]), quick.next([[token]])
        close(np.asarray(got), want, 2e-3)


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_a_picture_is_within_float16_of_float32(pairs, name):
    exact, quick = (
        load(pairs(name).text, pairs(name).mmproj),
        fast(pairs(name), load(pairs(name).text, pairs(name).mmproj).settings["profile"]),
    )
    assert 1e-5 < rel_rms(quick.encode_image(PICTURE), exact.encode_image(PICTURE)) < 2e-2


@pytest.mark.parametrize("name", ["grouped heads, Q8_0", "gemma3"])
def test_every_stage_is_within_the_bounds_of_fast(pairs, name, tmp_path):
    """Each stage by itself, from float32's inputs: conform names none, and sees that none is float32 either."""
    Image.fromarray(PICTURE).save(tmp_path / "picture.png")
    pair, profile = pairs(name), "hf" if name == "gemma3" else "llava"
    case = Case(pair.text, pair.mmproj, (tmp_path / "picture.png",), "<image>\nWhat is red in the picture?")
    model = fast(pair, profile)
    report = conform(lambda changed: model, case, ThisProject(profile=profile).run(case))
    assert not report.findings and report.n_compared > 50
    worst = {
        kind: max(s.own.rel_rms for s in report.stages if s.own and s.kind == kind) for kind in ("matmul", "float")
    }
    assert worst["matmul"] > 1e-4 and worst["float"] < 1e-6


def test_the_embedded_pair_goes_on_with_the_same_token():
    exact, quick = load(*embedded()), fast(Pair(*embedded()))
    picture = embedded()[0].parent / "pictures" / "count.png"
    ask = [{"type": "image", "image": picture}, {"type": "text", "text": "Count the stars."}]
    parts = [model.parts(model.request([{"role": "user", "content": ask}])) for model in (exact, quick)]
    assert 1e-5 < rel_rms(parts[1][1].data, parts[0][1].data) < 1e-3  # the picture's rows
    want, got = (model.session().feed(whole) for model, whole in zip((exact, quick), parts, strict=True))
    assert rel_rms(got, want) < 2e-3 and got.argmax() == want.argmax()


def test_without_memory_for_copies_a_prompt_is_the_same_to_rounding(pairs):
    name = "three types side by side"
    models = [fast(pairs(name), copies=copies) for copies in (EVERYTHING, 0)]
    with_copies, without = (model.session().feed([LONG], all_logits=True) for model in models)
    assert 0 < rel_rms(without, with_copies) < 5e-3
    close(with_copies, load(pairs(name).text).session().feed([LONG], all_logits=True), 2e-2)


@pytest.mark.parametrize("name", ["no kernel for MXFP4", "grouped heads, Q8_0"])
def test_what_is_recorded_copies_nothing_from_the_host(pairs, name, monkeypatch):
    """A second step and a second picture upload nothing: a graph that is being recorded must not."""
    model = fast(pairs(name))
    pixels = model.ops.array(model.preprocess(model.decode_image(PICTURE)).pixels)
    session, first = model.session(), model.tower.encode(pixels)
    session.next([[5]])
    for maker in ("tensor", "from_numpy", "as_tensor", "frombuffer"):
        monkeypatch.setattr(torch, maker, None)
    assert torch.equal(model.tower.encode(pixels), first)
    assert session.next([[7]]).finite


def launches(monkeypatch, run) -> list[tuple]:
    """Return what `run` launches: kernels, grids, numbers, and the shapes of arrays."""
    from triton.runtime.interpreter import GridExecutor

    seen, launch = [], GridExecutor.__call__

    def logged(self, *args, **options):
        told = [(tuple(x.shape), x.stride(), x.dtype) if isinstance(x, torch.Tensor) else x for x in args]
        seen.append((self.fn.__name__, tuple(self.grid), *told, *sorted(options.items())))
        return launch(self, *args, **options)

    with monkeypatch.context() as patched:
        patched.setattr(GridExecutor, "__call__", logged)
        run()
    return seen


@pytest.mark.skipif(DEVICE == "cuda", reason="reads what the interpreter is given")
@pytest.mark.parametrize("name", ["no kernel for MXFP4", "grouped heads, Q8_0"])
def test_a_step_launches_the_same_at_every_position(pairs, name, monkeypatch):
    """Or it could not be recorded. What `forward` launches depends on the position."""
    model = fast(pairs(name))
    session = model.session()
    session.next([[5]])
    first, second = (launches(monkeypatch, lambda: session.next([[7]])) for _ in range(2))
    assert first == second and len(first) > 8
    watched = Session(model.text, probes=Probes(Trace(("embd",), model.ops)))
    first, second = (launches(monkeypatch, lambda: watched.next([[7]])) for _ in range(2))
    assert first != second


def test_attention_weights_can_be_seen(pairs):
    model, seen = fast(pairs("gemma3")), {}
    with model.trace("blk.0.kq_soft_max", "blk.1.kqv_out") as trace:
        model.session().feed([PROMPT])
        seen = dict(trace.arrays) if hasattr(trace, "arrays") else dict(trace)
    np.testing.assert_allclose(seen["blk.0.kq_soft_max"].sum(-1), 1, atol=1e-3)


def test_bad_numbers_of_a_step_are_named(pairs):
    model = fast(pairs("grouped heads, Q8_0"))
    session = model.session()
    session.next([[5]])
    norm = model.text.weights.blocks[1].ffn_norm
    norm[3] = float("nan")
    with pytest.raises(NumericsError, match="blk.1.ffn_norm"):
        session.next([[7]])


def test_a_later_sequence_takes_over_the_memory_and_the_step():
    slots = Slots(DEVICE)
    first, second = (StaticCache(slots.take(2, 1, 8), slots, 100) for _ in range(2))
    slot = first.slot
    assert slot is not second.slot
    del first
    third = StaticCache(slots.take(2, 1, 8), slots, 100)
    assert third.slot is slot and third.length == 0
    assert StaticCache(slots.take(2, 2, 8), slots, 100).slot.shape == (2, 2, 8)


def test_a_later_session_takes_over_the_recorded_step(pairs):
    """At once, without Python's search for circles: a slot holds gigabytes."""
    model = fast(pairs("no kernel for MXFP4"))
    first, second = model.session(), model.session()
    first.next([[5]])
    logits, slot = np.asarray(first.next([[7]])), first._cache.slot
    assert second._cache.slot is not slot
    gc.disable()
    try:
        del first
        third = model.session()
    finally:
        gc.enable()
    assert third._cache.slot is slot and third.n_past == 0
    third.next([[5]])
    np.testing.assert_array_equal(np.asarray(third.next([[7]])), logits)


@pytest.mark.parametrize("text", [
    TextSpec(width=68, n_layer=1, n_head=17, n_head_kv=1, mlp_width=32),
    TextSpec(width=264, n_layer=1, n_head=1, n_head_kv=1, mlp_width=32),
], ids=["17 heads of one key", "head of 264"])  # fmt: skip
def test_heads_that_no_kernel_takes_are_attended_to_by_torch(text, tmp_path):
    pair = build(tmp_path, text, VisionSpec())
    exact, quick = load(pair.text).session(), fast(pair).session()
    close(quick.feed([PROMPT]), exact.feed([PROMPT]), 2e-2)
    assert isinstance(quick.next([[7]]), np.ndarray)


def test_keys_are_kept_when_the_memory_grows(monkeypatch):
    monkeypatch.setattr("llava_ref.ops.cuda.cache.FIRST_ROOM", 4)
    cache = StaticCache(Slots(DEVICE).take(1, 2, 8), Slots(DEVICE), 11)
    rows = torch.tensor(rand(11, 2, 8), device=DEVICE)
    for start, end in ((0, 3), (3, 4), (4, 5), (5, 11)):
        kv = cache.append(0, rows[start:end], -rows[start:end])
        cache.advance(end - start)
        np.testing.assert_array_equal(kv.keys.cpu().numpy(), rows[:end].half().cpu().numpy())
        np.testing.assert_array_equal(kv.values.cpu().numpy(), -rows[:end].half().cpu().numpy())
    assert cache.slot.room == 11 and kv.type == "f16"


def test_a_step_is_recorded_again_when_the_memory_grows(pairs, monkeypatch):
    monkeypatch.setattr("llava_ref.ops.cuda.cache.FIRST_ROOM", 2)
    model = fast(pairs("grouped heads, Q8_0"))
    steps = model.session()
    short = [np.asarray(steps.next([[token]])) for token in PROMPT[:3]]
    assert steps._cache.slot.room == 4
    monkeypatch.undo()
    other = fast(pairs("grouped heads, Q8_0")).session()
    for token, logits in zip(PROMPT[:3], short, strict=True):
        close(np.asarray(other.next([[token]])), logits, 1e-6)


@pytest.mark.parametrize("name", ["three types side by side", "no kernel for MXFP4", "gemma3"])
def test_every_array_says_where_it_lies(pairs, name):
    """With another default device, an array that is made without one could not meet the others."""
    with torch.device("meta"):
        model = fast(pairs(name))
        session = model.session()
        session.feed([PROMPT[:2], model.encode_image(PICTURE), PROMPT])
        logits = session.next([[7]])
        assert logits.finite and np.isfinite(np.asarray(logits)).all()
        with model.trace("*", "*kq_soft_max"):
            model.session().feed([PROMPT])
