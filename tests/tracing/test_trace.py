"""Probes on a tiny pair: what a trace holds, what an intervention does, and what neither of them changes."""

import numpy as np
import pytest

import llava_ref
from llava_ref.errors import ParameterError
from llava_ref.generation.sampling import Sampling
from llava_ref.models.stages import Stage
from llava_ref.tracing.trace import ON_REQUEST, At, Probe, Probes, join, joined_shape, no_tap

from ..support.helpers import close, rel_rms
from ..support.tiny_pair import VICUNA, Tiny, write_pair

RGB = np.random.default_rng(0).integers(0, 256, (30, 47, 3), np.uint8)
OTHER = np.random.default_rng(1).integers(0, 256, (25, 25, 3), np.uint8)
PROMPT = "red <image> and blue"


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return write_pair(tmp_path_factory.mktemp("pair"), Tiny(template=VICUNA, context=1200))


@pytest.fixture(scope="module", params=["torch", "numpy"])
def model(pair, request):
    return llava_ref.load(*pair, backend=request.param)


@pytest.fixture(scope="module")
def one(pair):
    return llava_ref.load(*pair, backend="numpy")


def test_a_trace_has_every_stage_in_order(model):
    with model.trace() as trace:
        model.logits(PROMPT, [RGB])
    assert tuple(trace) == tuple(name for name in model.stages() if ON_REQUEST not in name)
    with model.trace("*", f"*{ON_REQUEST}") as everything:
        model.logits(PROMPT, [RGB])
    assert tuple(everything) == model.stages()


def test_shapes_are_those_of_the_table(model):
    with model.trace("*", f"*{ON_REQUEST}") as trace:
        logits = model.logits(PROMPT, [RGB])
    v, t = model.tower.config, model.text.config
    tower = {"S": v.image_size, "3": 3, "H": 30, "W": 47, "N": v.n_patches, "T": v.n_patches + 1, "Dv": v.width}
    tower |= {"Fv": v.mlp_width, "Hv": v.n_head, "M": trace["projector.mm_0"].shape[1], "D": t.width}
    text = {"T": len(logits), "D": t.width, "F": t.mlp_width, "V": t.n_vocab, "H": t.n_head, "Hkv": t.n_head_kv}
    text |= {"dh": t.head_size, "H*dh": t.n_head * t.head_size, "Hkv*dh": t.n_head_kv * t.head_size}
    for stage in model.stage_table():
        sizes = text if stage.name.startswith(("blk.", "embd", "result_")) else tower
        assert trace[stage.name].shape == tuple(sizes[letter] for letter in stage.shape.split()), stage.name


def test_a_trace_holds_what_the_calls_give(model):
    with model.trace("image.rgb", "vision.pixels", "projector.out", "result_output") as trace:
        rows, logits = model.encode_image(RGB), model.logits("red and blue")
    assert (trace["image.rgb"] == RGB).all() and trace["image.rgb"].dtype == np.uint8
    assert (trace["vision.pixels"] == model.preprocess(model.decode_image(RGB)).pixels[0]).all()
    assert (trace["projector.out"] == rows).all()
    assert (trace["result_output"] == logits).all()


def test_watching_changes_no_bit(model):
    plain = model.logits(PROMPT, [RGB])
    with model.trace("*", f"*{ON_REQUEST}"), model.intervene({"*": lambda x, at: x}):
        watched = model.logits(PROMPT, [RGB])
    assert (plain == watched).all()


def test_attention_weights_come_only_by_name_and_are_distributions(model):
    with model.trace("blk.0.*", "vision.*") as trace:
        model.logits(PROMPT, [RGB])
    assert not any(ON_REQUEST in name for name in trace)
    with model.trace(f"blk.0.{ON_REQUEST}", f"vision.blk.1.{ON_REQUEST}") as trace:
        model.logits(PROMPT, [RGB])
    causal, full = trace[f"blk.0.{ON_REQUEST}"], trace[f"vision.blk.1.{ON_REQUEST}"]
    for weights in (causal, full):
        close(weights.sum(-1), np.ones(weights.shape[:2]), 1e-6)
    assert (np.triu(causal[0], 1) == 0).all() and (full > 0).all()


def test_a_long_prompt_and_generated_tokens_are_joined(model):
    prompt = "red " * 560  # more than one batch of the decoder
    request = model.raw_request(prompt)
    n = len(request.token_ids)
    assert n > 512
    with model.trace("embd", "blk.0.out", "blk.1.Kcur_rope", f"blk.1.{ON_REQUEST}", "result_output") as trace:
        reply = model.answer(request, Sampling(logit_bias={2: -100}), max_tokens=3).finish()
    ids = [*request.token_ids, *reply.token_ids]
    assert [len(trace[name]) for name in ("embd", "blk.0.out", "blk.1.Kcur_rope")] == [n + 2] * 3
    assert trace[f"blk.1.{ON_REQUEST}"].shape == (model.text.config.n_head, n + 2, n + 2)
    assert len(trace["result_output"]) == 3
    with model.trace("blk.0.out", f"blk.1.{ON_REQUEST}") as whole:
        model.forward([ids[:-1]])
    close(trace["blk.0.out"], whole["blk.0.out"], 1e-5)
    close(trace[f"blk.1.{ON_REQUEST}"], whole[f"blk.1.{ON_REQUEST}"], 1e-5)


def test_a_second_picture_and_a_second_sequence_are_numbered(one):
    with one.trace("projector.out", "embd") as trace:
        one.logits("<image> red <image>", [RGB, OTHER])
        one.logits("blue")
    assert list(trace) == ["projector.out", "projector.out#1", "embd", "embd#1"]
    assert (trace["projector.out#1"] == one.encode_image(OTHER)).all()


def test_nothing_is_kept_outside_the_block(one):
    with one.trace("embd") as trace:
        pass
    one.logits("red")
    assert len(trace) == 0
    with pytest.raises(ZeroDivisionError), one.intervene({"embd": lambda x, at: 1 / 0}):
        one.logits("red")
    one.logits("red")
    assert Probes().tap(object()) is no_tap


def test_a_trace_says_what_it_holds(one):
    with one.trace("blk.0.*", "result_output") as trace:
        one.logits(PROMPT, [RGB])
    n, width = trace["blk.0.out"].shape
    assert repr(trace).startswith(f"<Trace of {len(trace)} arrays: blk.0.attn_norm [{n}, {width}], blk.0.Qcur [")
    with pytest.raises(
        KeyError, match=rf"'blk.0.ffn_gates' was not kept; of {len(trace)} kept the nearest: blk.0.ffn_gate,"
    ):
        trace["blk.0.ffn_gates"]
    assert "blk.1.out" not in trace and trace.get("blk.1.out") is None
    with one.trace("blk.0.out") as empty:
        pass
    assert repr(empty) == "<Trace of 0 arrays>" and empty.get("blk.0.out") is None
    with pytest.raises(KeyError, match="of 0 kept the nearest: none"):
        empty["blk.0.out"]


def test_an_edit_is_what_the_pass_goes_on_with(model):
    with model.intervene({"blk.*.attn_out": lambda x, at: x * 0, "blk.*.ffn_out": lambda x, at: x * 0}):
        with model.trace("embd", "blk.1.out", "blk.1.attn_out") as trace:
            changed = model.logits(PROMPT, [RGB])
    assert (trace["blk.1.attn_out"] == 0).all() and (trace["blk.1.out"] == trace["embd"]).all()
    close(changed, model.unembed(trace["embd"]), 1e-6)


def test_edits_come_before_traces_whichever_was_set_first(one):
    with one.trace("embd") as before, one.intervene({"embd": lambda x, at: x + 1}), one.trace("embd") as behind:
        one.logits("red")
    with one.trace("embd") as untouched:
        one.logits("red")
    assert (before["embd"] == untouched["embd"] + 1).all() and (behind["embd"] == before["embd"]).all()


def test_edits_of_one_name_are_applied_in_order(one):
    with one.trace("result_norm") as trace:
        with one.intervene({"result_*": lambda x, at: x * 0 + 1, "result_norm": lambda x, at: x * 3}):
            one.logits("red")
    assert (trace["result_norm"] == 3).all()


def test_a_function_is_told_where_it_is(one):
    met: list[At] = []

    def note(x, at):
        met.append(at)
        return x

    with one.intervene({"blk.0.out": note, "projector.out": note, "result_output": note}):
        request = one.raw_request("red <image>" + " blue" * 530, [RGB])
        one.answer(request, Sampling(logit_bias={2: -100}), max_tokens=2).finish()
    n = len(request.token_ids)
    assert met == [
        At("projector.out", None, 0),
        At("blk.0.out", range(0, n), 0),
        At("result_output", range(n - 1, n), 0),
        At("blk.0.out", range(n, n + 1), 0),
        At("result_output", range(n, n + 1), 0),
    ]


def test_a_picture_can_be_changed_before_it_is_seen(model):
    with model.intervene({"image.rgb": lambda x, at: OTHER if x.shape == OTHER.shape else x * 0}):
        rows, black = model.encode_image(OTHER), model.encode_image(RGB)
    assert (rows == model.encode_image(OTHER)).all()
    assert (black == model.encode_image(RGB * 0)).all()


def test_numpy_may_come_back_from_torch(pair):
    model = llava_ref.load(*pair, backend="torch")
    with model.trace("blk.0.out") as trace:
        with model.intervene({"blk.0.out": lambda x, at: x.numpy() * 2}):
            model.logits("red")
    with model.trace("blk.0.out") as plain:
        model.logits("red")
    assert (trace["blk.0.out"] == plain["blk.0.out"] * 2).all()


@pytest.mark.parametrize(
    "function, says",
    [
        (lambda x, at: x[:1], "float32 [1,"),
        (lambda x, at: None, "NoneType"),
        (lambda x, at: np.asarray(x).astype(np.float64).reshape(-1), "expected"),
        (lambda x, at: 3.0, "float, expected an array"),
    ],
)
def test_what_a_function_gives_is_checked(model, function, says):
    with pytest.raises(ParameterError, match="intervene: blk.0.out: the function returned") as caught:
        with model.intervene({"blk.0.out": function}):
            model.logits("red and blue")
    assert says in str(caught.value)


def test_names_are_checked(one):
    for glob in ("blk.99.out", "token_ids", "", "vision.pixel"):
        for start in (lambda glob=glob: one.trace(glob), lambda glob=glob: one.intervene({glob: lambda x, at: x})):
            with pytest.raises(ParameterError, match="fits none of this model's"), start():
                pass


def test_half_a_model_has_half_the_stages(pair):
    text, mmproj = llava_ref.load(pair[0], None), llava_ref.load(None, pair[1])
    both = llava_ref.load(*pair)
    assert mmproj.stages() + text.stages() == both.stages()
    with mmproj.trace() as trace:
        mmproj.encode_image(RGB)
    assert tuple(trace) == tuple(name for name in mmproj.stages() if ON_REQUEST not in name)


def test_the_table_is_filled_in(one):
    for stage in one.stage_table():
        assert isinstance(stage, Stage) and "{" not in "".join([stage.name, stage.llama_cpp, stage.transformers])
        assert stage.transformers or stage.name.startswith("image.")
    types = one.types()
    assert set(types) == {stage.name for stage in one.stage_table() if stage.weight}
    assert set(types.values()) <= {"F32", "F16"}


def test_joined_shapes_are_the_shapes_of_what_is_joined():
    rows = [np.ones((n, 3)) for n in (4, 1)]
    weights = [np.ones((2, 4, 4)), np.ones((2, 1, 5))]
    for name, pieces in (("embd", rows), (ON_REQUEST, weights)):
        assert join(name, pieces).shape == joined_shape(name, [piece.shape for piece in pieces])


def test_a_probe_of_ones_own(one):
    class Count(Probe):
        n = 0

        def see(self, x, at):
            self.n += 1
            return x

    with one.probed(Count(["blk.*.out"])) as count:
        one.logits("red")
    assert count.n == one.text.config.n_layer


def test_an_embedded_answer_can_be_taken_away():
    """Without what the picture's rows say, the answer is another."""
    text, mmproj = llava_ref.embedded()
    model = llava_ref.load(text, mmproj)
    question = [{"type": "image", "image": text.parent / "pictures" / "colour.png"}, {"type": "text", "text": "?"}]
    request = model.request([{"role": "user", "content": question}])
    plain = model.request_logits(request)
    with model.intervene({"projector.out": lambda x, at: x * 0}):
        blind = model.request_logits(request)
    assert rel_rms(blind[-1], plain[-1]) > 0.1
