"""Gemma 3's decoder: which layers see a window, what scales attention, what is refused, what pictures see."""

from dataclasses import replace

import numpy as np
import pytest

from llava_ref import gguf, load
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3, gemma3_metadata, gemma3_tensors
from llava_ref.conformance.pairs.pairs import Random
from llava_ref.conformance.pairs.writing import held, write
from llava_ref.errors import GGUFError
from llava_ref.generation.session import Session
from llava_ref.models import text_family
from llava_ref.models.gemma3 import Gemma3, read
from llava_ref.models.rope import frequencies
from llava_ref.profiles import Quirks

from ..support.helpers import close, rand, rel_rms

SPEC, SIGLIP = Gemma3Spec(), SiglipSpec()
PROMPT = [2, 70, 71, 300, 5, 9, 250, 70, 44, 45, 310, 12]
K = "gemma3."


@pytest.fixture
def opened(tmp_path_factory):
    """The text file's metadata with these keys changed; None takes one out."""

    def make(changes={}, spec=SPEC):  # noqa: B006
        path = tmp_path_factory.mktemp("text") / "text.gguf"
        write(path, {k: v for k, v in (gemma3_metadata(spec) | changes).items() if v is not None}, {})
        return gguf.read(path)

    return make


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    def make(text=SPEC, vision=SIGLIP, backend="numpy", **options):
        pair = build_gemma3(tmp_path_factory.mktemp("pair"), text, vision)
        return load(pair.text, pair.mmproj, backend=backend, **options)

    return make


def test_the_architecture_names_the_family(opened):
    assert text_family(opened()) is Gemma3


def test_every_sixth_layer_sees_everything(opened):
    settings = read(opened(spec=replace(SPEC, n_layer=14)))
    assert [i for i in range(14) if not settings.local(i)] == [5, 11]
    settings = read(opened({K + "attention.sliding_window_pattern": 3}))
    assert [i for i in range(7) if not settings.local(i)] == [2, 5]
    settings = read(opened({K + "attention.sliding_window": None}))
    assert not any(settings.local(i) for i in range(7)), "nothing hides without a window"


def test_local_layers_turn_by_a_base_of_their_own(opened):
    """The factor of linear scaling is of the layers that see everything."""
    given = {K + "rope.scaling.type": "linear", K + "rope.scaling.factor": 8.0}
    settings = read(opened(given))
    pair = np.arange(SPEC.head_size // 2) / (SPEC.head_size / 2)
    np.testing.assert_allclose(frequencies(settings.text.rope, None), 1e6**-pair / 8, rtol=1e-6)
    np.testing.assert_allclose(frequencies(settings.local_rope, None), 1e4**-pair, rtol=1e-6)
    assert read(opened({K + "rope.freq_base_swa": 500.0})).local_rope.base == 500.0


def test_27b_scales_by_its_width(opened):
    """1 / sqrt(width / heads) with 62 layers, 1 / sqrt(head size) with any other number."""
    assert SPEC.width // SPEC.n_head == 15 != SPEC.head_size
    scales = {n: read(opened(spec=replace(SPEC, n_layer=n))).text.attention_scale for n in (7, 61, 62, 63)}
    assert scales == pytest.approx({7: 10**-0.5, 61: 10**-0.5, 62: 15**-0.5, 63: 10**-0.5})


REFUSED = {
    K + "rope.scaling.type": "yarn", K + "attn_logit_softcapping": 50.0, K + "final_logit_softcapping": 30.0,
    K + "attention.sliding_window_pattern": 0, K + "attention.sliding_window": "wide", K + "expert_count": 4,
    K + "rope.freq_base_swa": 0.0, K + "attention.causal": False, K + "attention.value_length": 12,
    K + "rope.dimension_count": 8, K + "hidden_activation": "silu",
}  # fmt: skip


@pytest.mark.parametrize("key, value", REFUSED.items(), ids=str)
def test_a_key_that_is_not_obeyed_is_refused_by_name(opened, key, value):
    yarn = {K + "rope.scaling.factor": 4.0} if value == "yarn" else {}
    with pytest.raises(GGUFError) as caught:
        read(opened({key: value} | yarn))
    assert caught.value.field == key


def test_keys_that_ask_for_nothing_are_accepted(opened):
    given = {K + "attn_logit_softcapping": 0.0, K + "final_logit_softcapping": 0.0, K + "attention.causal": True}
    given |= {K + "hidden_activation": "gelu_pytorch_tanh"}
    assert read(opened(given)) == read(opened())


@pytest.mark.parametrize("change, field", [
    (lambda t: t.pop("blk.1.attn_q_norm.weight"), "blk.1.attn_q_norm.weight"),
    (lambda t: t.pop("blk.6.post_ffw_norm.weight"), "blk.6.post_ffw_norm.weight"),
    (lambda t: t.update({"blk.0.attn_q.bias": held(rand(40))}), "blk.0.attn_q.bias"),
    (lambda t: t.update({"blk.0.attn_k_norm.weight": held(rand(20))}), "blk.0.attn_k_norm.weight"),
    (lambda t: t.update({"rope_freqs.weight": held(rand(5))}), "rope_freqs.weight"),
])  # fmt: skip
def test_tensors_at_odds_with_the_settings_are_refused(tmp_path, change, field):
    tensors = gemma3_tensors(SPEC, Random(0, 1.0))
    change(tensors)
    write(tmp_path / "text.gguf", gemma3_metadata(SPEC), tensors)
    with pytest.raises(GGUFError) as caught:
        load(tmp_path / "text.gguf")
    assert caught.value.field == field


def test_embeddings_of_tokens_are_scaled_and_rows_of_pictures_are_not(make):
    model, rows = make(), rand(3, SPEC.width)
    with model.trace("embd") as trace:
        model.forward([[5, 9], rows])
    embedding = np.frombuffer(model.text.file.tensors["token_embd.weight"].data, np.float32).reshape(-1, SPEC.width)
    close(trace["embd"][:2], embedding[[5, 9]] * SPEC.width**0.5, 1e-6)
    np.testing.assert_array_equal(trace["embd"][2:], rows)


def test_rows_of_a_picture_see_one_another_and_the_text_does_not(make):
    """The weights of the first layer, whose window of 7 hides nothing here: what each of nine positions sees."""
    model, rows = make(), rand(4, SPEC.width)
    with model.trace("blk.0.kq_soft_max") as trace:
        model.forward([[5, 9], rows, [6]])
    seen = trace["blk.0.kq_soft_max"] > 0  # (H, T, S)
    want = np.tri(7, dtype=bool)
    want[2:6, 2:6] = True
    assert (seen == want).all()


def test_a_window_hides_in_local_layers_only(make):
    model = make()
    with model.trace("blk.*.kq_soft_max") as trace:
        model.forward([PROMPT])
    apart = np.arange(12)[:, None] - np.arange(12)
    for i in range(7):
        seen = trace[f"blk.{i}.kq_soft_max"] > 0
        assert (seen == ((apart >= 0) & ((apart < 7) if i != 5 else True))).all(), i


OTHER = replace(SPEC, n_head_kv=1, rope_factor=8.0, pattern=3, window=4)


@pytest.mark.parametrize("spec", [SPEC, OTHER], ids=["GQA", "MQA"])
def test_torch_and_numpy_agree(make, spec):
    parts = [PROMPT, rand(9, SPEC.width), PROMPT]
    close(make(spec, backend="torch").forward(parts), make(spec).forward(parts), 1e-5)


CHANGES = [dict(window=3), dict(window=None), dict(pattern=2), dict(rope_base=1e3), dict(eps=0.1)]
CHANGES += [dict(rope_base_swa=30.0), dict(rope_factor=8.0)]


def rms(x, gain, eps):
    return x / np.sqrt(np.square(x.astype(np.float64)).mean(-1, keepdims=True) + eps) * gain


def test_a_block_step_by_step(make):
    """Every step that is no product nor attention, from the stage before it, with the formula written out."""
    model = make(replace(SPEC, eps=0.05))
    with model.trace("embd", "blk.0.*") as trace:
        model.forward([PROMPT])
    weights, t = model.text.weights.blocks[0], {name.removeprefix("blk.0."): x for name, x in trace.items()}
    steps = {"attn_norm": rms(t["embd"], weights.attn_norm, 0.05), "ffn_inp": t["embd"] + t["attn_post_norm"]}
    angle = np.arange(12)[:, None] * 1e4 ** (-np.arange(5) / 5)  # block 0 sees a window
    for name, heads, gain in (("Qcur", 4, weights.q_norm), ("Kcur", 2, weights.k_norm)):
        steps[f"{name}_normed"] = n = rms(t[name].reshape(12, heads, 10), gain, 0.05)
        pairs = (n[..., :5] + 1j * n[..., 5:]) * np.exp(1j * angle)[:, None]
        steps[f"{name}_rope"] = np.concatenate([pairs.real, pairs.imag], -1)
    for name, before, gain in (("attn_post_norm", "attn_out", weights.attn_post_norm),
                               ("ffn_norm", "ffn_inp", weights.ffn_norm),
                               ("ffn_post_norm", "ffn_out", weights.ffn_post_norm)):  # fmt: skip
        steps[name] = rms(t[before], gain, 0.05)
    gate = t["ffn_gate"].astype(np.float64)
    gelu = gate / 2 * (1 + np.tanh(np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)))
    steps |= {"ffn_geglu": gelu * t["ffn_up"], "out": t["ffn_inp"] + t["ffn_post_norm"]}
    for name, want in steps.items():
        close(t[name], want, 1e-6, name)
    products = {"embd", *"Qcur Kcur Vcur kqv_out attn_out ffn_gate ffn_up ffn_out".split()}
    assert set(t) - set(steps) == products


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_every_setting_matters(make, change):
    assert rel_rms(make(replace(SPEC, **change)).forward([PROMPT]), make().forward([PROMPT])) > 1e-3


@pytest.mark.parametrize("backend", ["numpy", "torch"])
def test_one_by_one_is_one_pass(make, backend):
    model, rows = make(backend=backend), rand(9, SPEC.width)
    whole = model.forward([PROMPT, rows, PROMPT])
    session = Session(model.text)
    session.feed([PROMPT])
    session.feed([rows])
    close(np.stack([session.feed([[token]]) for token in PROMPT]), whole[-len(PROMPT) :], 5e-6)


def test_its_original_is_transformers(make):
    assert Gemma3.ORIGINAL == "hf" and make().quirks == make(profile="hf").quirks != Quirks()


def test_stages_are_those_that_run(make):
    model = make()
    with model.trace("*", "*kq_soft_max") as trace:
        model.logits("the <image>", [np.zeros((9, 9, 3), np.uint8)])
    assert tuple(trace) == model.stages()
    c, t = model.tower.config, model.text.config
    sizes = {
        "S": 84,
        "3": 3,
        "H": 9,
        "W": 9,
        "N": 9,
        "n*n": 36,
        "T": 36,
        "Dv": c.width,
        "Fv": c.mlp_width,
        "Hv": c.n_head,
    }
    text = {"T": len(trace["embd"]), "D": t.width, "F": t.mlp_width, "V": t.n_vocab, "H": t.n_head, "Hkv": t.n_head_kv}
    text |= {"dh": t.head_size, "H*dh": t.n_head * t.head_size, "Hkv*dh": t.n_head_kv * t.head_size}
    for stage in model.stage_table():
        letters = text if stage.name.startswith(("blk.", "embd", "result_")) else sizes | {"D": t.width}
        assert trace[stage.name].shape == tuple(letters[letter] for letter in stage.shape.split()), stage.name
