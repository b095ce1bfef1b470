"""Sessions on random pairs: two backends, caches, quirks, bad numbers, limits."""

from dataclasses import replace

import numpy as np
import pytest

from llava_ref import Llava, gguf, load
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec, build
from llava_ref.errors import GGUFError, NumericsError, PairError, ParameterError, PromptError
from llava_ref.generation.session import ROWS, Session
from llava_ref.profiles import PROFILES, Quirks, describe, resolve
from llava_ref.tracing.trace import Probe, Probes

from ..support.helpers import close, rand, rel_rms

BACKENDS = ["torch", "numpy"]
PIXELS = rand(1, 3, 56, 56)
PROMPT = [3, 70, 71, 300, 5, 9, 250, 70]


@pytest.fixture(scope="module")
def make(tmp_path_factory):
    """Load a random pair with these options."""

    def make(text=TextSpec(), vision=VisionSpec(), backend="numpy", edit=None, **options):
        pair = build(tmp_path_factory.mktemp("pair"), text, vision)
        if edit:
            edit(pair)
        return load(pair.text, pair.mmproj, backend=backend, **options)

    return make


def answer(model: Llava, tokens=PROMPT) -> np.ndarray:
    """Return logits of every position of `BOS, picture, tokens`."""
    return model.session().feed([[1], model.encode(PIXELS), tokens], all_logits=True)


TEXTS = {
    "GQA": TextSpec(),
    "MHA": TextSpec(n_head_kv=4),
    "MQA, tied": TextSpec(n_head_kv=1, tied=True),
    "biases": TextSpec(biases=True),
    "linear rope": TextSpec(rope_scaling="linear"),
    "yarn": TextSpec(rope_scaling="yarn", original_context=64),
    "divisors": TextSpec(rope_divisors=True, rope_base=5e5),
    "window": TextSpec(window=5),
    "Q8_0": TextSpec(width=64, mlp_width=96, kind="Q8_0"),
    "F16": TextSpec(kind="F16"),
}


@pytest.mark.parametrize("text", TEXTS.values(), ids=TEXTS.keys())
def test_torch_and_numpy_agree(make, text):
    close(answer(make(text, backend="torch")), answer(make(text)), 5e-6)


@pytest.mark.parametrize("change", [dict(rope_scaling="linear"), dict(rope_scaling="yarn"), dict(rope_divisors=True),
                                    dict(window=5), dict(eps=1e-2), dict(rope_base=1e3)], ids=str)  # fmt: skip
def test_every_setting_of_the_decoder_matters(make, change):
    assert rel_rms(answer(make(replace(TextSpec(), **change))), answer(make())) > 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("text", [TextSpec(), TextSpec(window=5)], ids=["plain", "window"])
def test_one_by_one_is_one_pass(make, backend, text):
    model = make(text, backend=backend)
    image, whole = model.encode(PIXELS), answer(model)
    session = model.session()
    session.feed([[1]])
    session.feed([image])
    close(np.stack([session.feed([[token]]) for token in PROMPT]), whole[-len(PROMPT) :], 3e-6)
    assert session.n_past == len(whole)


def test_each_position_by_itself_has_the_logits_of_all_together(make):
    model, seen = make(), []

    class Rows(Probe):
        def see(self, x, at):
            seen.append(at.positions)
            return x

    parts = [[1], model.encode(PIXELS), [int(t) for t in np.random.default_rng(0).integers(3, 300, 150)]]
    session = Session(model.text, probes=Probes(Rows(["result_output"])))
    close(np.stack(list(session.each(parts))), model.session().feed(parts, all_logits=True), 3e-6)
    assert max(map(len, seen)) == ROWS and [i for rows in seen for i in rows] == list(range(session.n_past))
    with pytest.raises(PromptError, match="do not fit"):
        next(session.each([[1] * 1000]))


def test_a_long_prompt_runs_in_batches(make, monkeypatch):
    whole = answer(make())
    monkeypatch.setattr("llava_ref.generation.units.BATCH", 3)
    close(answer(make()), whole, 3e-6)


def test_the_cache_grows(make):
    model = make(TextSpec(context=700))
    tokens = [int(t) for t in np.random.default_rng(0).integers(3, 300, 600)]
    session = model.session()
    stepped = [session.feed([tokens[i : i + 150]], all_logits=True) for i in range(0, 600, 150)]
    close(np.concatenate(stepped), model.session().feed([tokens], all_logits=True), 3e-6)


@pytest.mark.parametrize("backend", BACKENDS)
def test_weights_dequantised_at_every_use_give_the_same_bits(make, backend):
    text = TextSpec(width=64, mlp_width=96, kind="Q8_0")
    kept, packed = (answer(make(text, backend=backend, weight_cache=size)) for size in (None, 0))
    np.testing.assert_array_equal(kept, packed)


def test_a_window_of_five_sees_five(make):
    model = make(TextSpec(n_layer=1, window=5))
    last = [model.session().feed([tokens]) for tokens in ([9, 5, 6, 7, 8, 10], [300, 5, 6, 7, 8, 10])]
    np.testing.assert_array_equal(*last)  # the first of six is out of sight
    assert rel_rms(*(model.session().feed([t]) for t in ([9, 6, 7, 8, 10], [300, 6, 7, 8, 10]))) > 1e-3


QUIRKS = ["class_token", "vit_layers", "post_ln", "gelu"]


@pytest.mark.parametrize("name", QUIRKS)
@pytest.mark.parametrize("backend", BACKENDS)
def test_each_quirk_of_the_tower_changes_the_rows(make, backend, name):
    vision = VisionSpec(post_ln=True, use_gelu=True)
    other = {name: describe(PROFILES["llama.cpp"])[name]}
    changed, plain = (make(vision=vision, backend=backend, quirks=q).encode(PIXELS) for q in (other, None))
    assert changed.shape == plain.shape == (16, 48)
    assert rel_rms(changed, plain) > 1e-5


def test_profile_llama_cpp_sees_past_the_window(make):
    ignored = make(TextSpec(window=5), quirks={"window": "ignore"})
    np.testing.assert_array_equal(answer(ignored), answer(make()))


def test_a_feature_layer_counts_blocks(make):
    three = make(vision=VisionSpec(feature_layer=3)).encode(PIXELS)
    np.testing.assert_array_equal(three, make(quirks={"vit_layers": "one-less"}).encode(PIXELS))
    np.testing.assert_array_equal(
        three,
        make(vision=VisionSpec(feature_layer=3), quirks={"vit_layers": "one-less"}).encode(PIXELS),
    )
    assert rel_rms(three, make(vision=VisionSpec(feature_layer=4)).encode(PIXELS)) > 1e-2


def test_swapped_names_of_old_files_mean_the_same(make):
    np.testing.assert_array_equal(make(vision=VisionSpec(swapped=True)).encode(PIXELS), make().encode(PIXELS))


def test_a_tower_without_class_token(make):
    rows = make(vision=VisionSpec(class_token=False)).encode(PIXELS)
    assert rows.shape == (16, 48)


def spoil(path, name: str, value: float) -> None:
    """Overwrites the first number of an F32 tensor."""
    view = gguf.read(path).tensors[name]
    raw = path.read_bytes()
    at = raw.index(bytes(view.data[:64]))
    path.write_bytes(raw[:at] + np.float32(value).tobytes() + raw[at + 4 :])


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_the_first_bad_number_is_named(make, backend, value):
    model = make(backend=backend, edit=lambda pair: spoil(pair.text, "blk.1.attn_norm.weight", value))
    with pytest.raises(NumericsError, match=r"text\.gguf: blk\.1\.attn_norm: "):
        model.session().feed([[1, 5, 6]])
    model = make(backend=backend, edit=lambda pair: spoil(pair.mmproj, "v.blk.2.ln2.weight", value))
    with pytest.raises(NumericsError, match=r"mmproj\.gguf: vision\.blk\.2\.ffn_inp_normed: "):
        model.encode(PIXELS)


def test_the_context_is_checked_before_any_work(make):
    model = make(TextSpec(context=8))
    session = model.session()
    session.feed([[1, 2, 3]])
    with pytest.raises(PromptError, match="9 positions do not fit the context of 8"):
        session.feed([[4] * 6])
    assert session.n_past == 3
    session.feed([[4] * 5])


@pytest.mark.parametrize(
    "parts, problem",
    [([], "there are none"), ([[]], "there are none"), ([[-1]], "an id is not in"), ([[10**6]], "an id is not in"),
     ([np.zeros((2, 7), np.float32)], "expected \\(n, 48\\)")],
)  # fmt: skip
def test_bad_parts_are_refused(make, parts, problem):
    with pytest.raises(PromptError, match=problem):
        make().session().feed(parts)


def test_a_pair_that_does_not_fit_is_refused(make, tmp_path):
    wide = build(tmp_path, TextSpec(width=64), VisionSpec())
    narrow = build(tmp_path / "..", TextSpec(), VisionSpec())
    with pytest.raises(PairError, match="has 48 rows, but the text model's embedding_length is 64"):
        load(wide.text, narrow.mmproj)


def test_files_in_each_others_place_are_refused(tmp_path):
    pair = build(tmp_path, TextSpec(), VisionSpec())
    with pytest.raises(GGUFError, match="general.architecture: 'clip' is not supported.*this is an mmproj file"):
        load(pair.mmproj)
    with pytest.raises(GGUFError, match="clip.has_vision_encoder"):
        load(None, pair.text)


@pytest.mark.parametrize(
    "options", [dict(backend="jax"), dict(backend="numpy", device="cuda"), dict(backend="torch", device="tpu")], ids=str
)
def test_what_is_not_there_is_refused(make, options):
    with pytest.raises(ParameterError):
        make(**options)


def test_profiles_are_the_table_of_the_readme():
    assert describe(PROFILES["llava"]) == describe(Quirks())
    with pytest.raises(ParameterError, match="'square'|square: 'round' is not one of pad-resize, crop, resize-pad"):
        resolve("llava", {"square": "round"})
    with pytest.raises(ParameterError, match="unknown, expected one of class_token"):
        resolve("llava", {"shape": "round"})
    with pytest.raises(ParameterError, match="unknown, expected one of llava, hf, llama.cpp"):
        resolve("ollama")
