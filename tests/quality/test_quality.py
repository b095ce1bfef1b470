"""The quantisation report: every figure against another way to compute it, planted damage found, siblings checked."""

import json
import re
from dataclasses import replace

import gguf
import numpy as np
import pytest
from PIL import Image

import llava_ref
from llava_ref.cli import main
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.errors import NumericsError, PairError
from llava_ref.quality import page as quality_page
from llava_ref.quality import siblings, tensors
from llava_ref.quality.siblings import FilePair
from llava_ref.tracing.distance import kl

from ..support.helpers import rel_rms
from ..support.tiny_pair import VICUNA, Tiny, write_mmproj, write_pair, write_text

QUESTION = "what is in the picture?"


def rewrite(source, target, change):
    """The same file with some tensors changed: `change(name, weights) -> (weights, type name)` or None to leave it."""
    reader = gguf.GGUFReader(source)
    writer = gguf.GGUFWriter(target, reader.fields["general.architecture"].contents())
    for key, field in reader.fields.items():
        if not key.startswith("GGUF.") and key != "general.architecture":
            inner = field.types[-1] if field.types[0] == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(key, field.contents(), field.types[0], sub_type=inner)
    for tensor in reader.tensors:
        weights = gguf.dequantize(tensor.data, tensor.tensor_type)
        new, kind = change(tensor.name, weights) or (weights, "F32")
        kind = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(tensor.name, gguf.quantize(np.ascontiguousarray(new, np.float32), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


BAD, SLIGHT = "blk.1.attn_output.weight", "blk.0.ffn_up.weight"


def planted(name, weights):
    """One tensor in 4 bits with noise, another in 8; the rest as it was."""
    noise = np.random.default_rng(3).standard_normal(weights.shape) * weights.std()
    return {BAD: (weights + noise, "Q4_0"), SLIGHT: (weights, "Q8_0")}.get(name)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("quality")
    write_pair(folder, Tiny(template=VICUNA))
    write_text(folder / "q8.gguf", Tiny(template=VICUNA, type="Q8_0"))
    write_text(folder / "q4.gguf", Tiny(template=VICUNA, type="Q4_0"))
    rewrite(folder / "text.gguf", folder / "planted.gguf", planted)
    rewrite(folder / "mmproj.gguf", folder / "half.gguf", lambda name, w: (w, "F16" if w.ndim > 1 else "F32"))
    rng = np.random.default_rng(1)
    for name, size in (("wide<b>.png", (20, 33, 3)), ("tall.png", (41, 19, 3))):
        Image.fromarray(rng.integers(0, 256, size, np.uint8)).save(folder / name)
    return folder


@pytest.fixture
def cli(folder, capsys, monkeypatch):
    """`quality` in the folder with the files: exit code, standard output, standard error."""
    monkeypatch.chdir(folder)

    def run(*arguments):
        status = main(["quality", *arguments, "--backend", "numpy"])
        return (status, *capsys.readouterr())

    return run


@pytest.fixture
def measured(cli):
    """The JSON of a run that must succeed."""

    def run(*arguments):
        status, out, err = cli(*arguments, "--json")
        assert status == 0, err
        return json.loads(out)

    return run


TOWER = ["--mmproj", "mmproj.gguf"]
PICTURES = ["--image", "wide<b>.png", "--image", "tall.png", "-p", QUESTION, "-n", "5"]
PAIR = [*TOWER, *PICTURES]


@pytest.mark.parametrize("piece", [1 << 22, 100])
@pytest.mark.parametrize("kind", ["q8", "q4"])
def test_error_of_a_tensor(folder, monkeypatch, kind, piece):
    monkeypatch.setattr(tensors, "CHUNK", piece)
    files = [FilePair(llava_ref.gguf.file.read(folder / name), None) for name in (f"{kind}.gguf", "text.gguf")]
    want = {t.name: t for t in gguf.GGUFReader(folder / "text.gguf").tensors}
    stored = {t.name: t for t in gguf.GGUFReader(folder / f"{kind}.gguf").tensors}
    found = tensors.compare(*files)
    assert [t.name for t in found] == list(stored)
    for t in found:
        w = gguf.dequantize(stored[t.name].data, stored[t.name].tensor_type)
        assert t.rel_rms == pytest.approx(rel_rms(w, want[t.name].data), abs=1e-12)
        assert t.max_abs == pytest.approx(np.abs(w - want[t.name].data).max(), abs=1e-12)
        assert (t.rel_rms > 0) == (w.ndim == 2)
    matrix = next(t for t in found if t.name == "blk.0.ffn_up.weight")
    assert (matrix.type, matrix.reference_type) == ({"q8": "Q8_0", "q4": "Q4_0"}[kind], "F32")
    assert matrix.bits == {"q8": 8.5, "q4": 4.5}[kind] and matrix.reference_bytes == 4 * 64 * 32


def test_weights_that_cannot_be_compared(tmp_path):
    good = write_text(tmp_path / "a.gguf", Tiny())
    bad = write_text(tmp_path / "b.gguf", Tiny(poisoned="blk.1.attn_q.weight"))
    with pytest.raises(NumericsError, match=r"blk\.1\.attn_q\.weight"):
        tensors.compare(*(FilePair(llava_ref.gguf.file.read(path), None) for path in (bad, good)))
    rewrite(good, tmp_path / "zero.gguf", lambda name, w: (0 * w, "F32") if name == "output.weight" else None)
    pair = [FilePair(llava_ref.gguf.file.read(path), None) for path in (good, tmp_path / "zero.gguf")]
    found = {t.name: t.rel_rms for t in tensors.compare(*pair)}
    assert found["output.weight"] == np.inf and found["token_embd.weight"] == 0


def test_a_planted_tensor_is_ranked_first(measured):
    got = measured("-m", "planted.gguf", "--against-model", "text.gguf", *PAIR)
    assert [entry["label"] for entry in got["ranking"]] == [BAD, SLIGHT]
    first, second = got["ranking"]
    assert first["kl"]["typical"] > 100 * second["kl"]["typical"] > 0
    assert first["extra_bytes"] == 32 * 32 * 4 - 32 * 18
    assert first["kl_per_mib"] == pytest.approx(first["kl"]["typical"] / first["extra_bytes"] * 2**20)
    (raised,) = got["raised"]
    assert raised["n"] == 1 and raised["extra_bytes"] == first["extra_bytes"] and raised["kl_removed"] > 0.95
    assert raised["kl"]["mean"] == pytest.approx(second["kl"]["mean"], rel=1e-4), "only the other is left"
    errors = {t["name"]: t["product_rel_rms"] for t in got["tensors"] if t["product_rel_rms"] is not None}
    assert max(errors, key=errors.get) == BAD and set(errors) == {BAD, SLIGHT}
    layers = {layer["name"]: layer for layer in got["layers"]}
    added = {name: layer["added"] for name, layer in layers.items() if layer["added"] > 1e-6}
    assert set(added) == {"blk.0.out", "blk.1.out"} and added["blk.1.out"] > 20 * added["blk.0.out"]
    assert layers["blk.0.out"]["carried"] == pytest.approx(added["blk.0.out"], rel=1e-3)
    assert layers["result_output"]["carried"] > added["blk.0.out"] and layers["projector.out"]["carried"] == 0
    assert got["images"]["cosine_worst"] == pytest.approx(1) and got["images"]["rel_rms_worst"] == 0


def test_alone_means_in_the_reference(measured, folder):
    """The KL that a ranking gives is that of a file with only this tensor quantised."""
    q4 = gguf.GGUFReader(folder / "q4.gguf")
    weights = {t.name: gguf.dequantize(t.data, t.tensor_type) for t in q4.tensors}
    name = "blk.1.ffn_gate.weight"
    rewrite(folder / "text.gguf", folder / "one.gguf", lambda n, w: (weights[n], "Q4_0") if n == name else None)
    whole = measured("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR, "--swap", name)
    one = measured("-m", "one.gguf", "--against-model", "text.gguf", *PAIR, "--rank", "none")
    assert whole["ranking"][0]["kl"]["mean"] == pytest.approx(one["kl"]["all"]["mean"], rel=1e-6)
    assert whole["kl"]["all"]["mean"] > one["kl"]["all"]["mean"] > 0


def test_raising_all_but_one_leaves_that_one(measured):
    got = measured("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR, "--rank", "layers")
    labels = [entry["label"] for entry in got["ranking"]]
    assert sorted(labels) == ["blk.0", "blk.1", "output.weight", "token_embd.weight"]
    block = got["ranking"][labels.index("blk.1")]
    assert len(block["names"]) == 7 and block["extra_bytes"] == sum(
        t["reference_bytes"] - t["n_bytes"] for t in got["tensors"] if t["name"].startswith("blk.1.")
    )
    assert [step["n"] for step in got["raised"]] == [1, 2]
    assert got["raised"][0]["extra_bytes"] == got["ranking"][0]["extra_bytes"]
    assert [entry["kl_per_mib"] for entry in got["ranking"]] == sorted(
        (entry["kl_per_mib"] for entry in got["ranking"]), reverse=True
    )


def test_identical_files_differ_in_nothing(measured):
    got = measured("-m", "text.gguf", "--against-model", "text.gguf", *PAIR)
    assert got["kl"]["all"]["max"] == 0 and got["kl"]["all"]["top_1"] == 1
    assert got["ranking"] == got["raised"] == []
    assert all(t["rel_rms"] == t["max_abs"] == 0 and t["product_rel_rms"] is None for t in got["tensors"])
    assert all(layer["added"] == layer["carried"] == 0 for layer in got["layers"])
    assert got["verdict"][-1] == "weights: the same as the reference's, so that no tensor is ranked"


def test_kl_of_the_answer(measured, folder):
    """Teacher-forced on the reference's own answer, position by position."""
    got = measured("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR)
    models = [llava_ref.load(folder / f, folder / "mmproj.gguf", backend="numpy") for f in ("q4.gguf", "text.gguf")]
    parts = [{"type": "image", "image": folder / "tall.png"}, {"type": "text", "text": QUESTION}]
    message = [{"role": "user", "content": parts}]
    reply = models[1].chat(message, max_tokens=5)
    request = models[1].request(message)
    fed = [*models[1].parts(request), list(reply.token_ids[:-1])]
    ours, theirs = (model.forward(fed) for model in models)
    begin = len(request.token_ids) - 1
    want = kl(ours[begin:], theirs[begin:])
    case = got["cases"][1]
    assert case["answer"] == reply.text.strip() and case["label"] == "tall.png"
    assert case["kl"]["answers"]["n"] == len(want) == len(reply.token_ids)
    assert case["kl"]["answers"]["mean"] == pytest.approx(want.mean(), rel=1e-5)
    assert case["kl"]["answers"]["max"] == pytest.approx(want.max(), rel=1e-5)
    same = ours[begin:].argmax(-1) == theirs[begin:].argmax(-1)
    assert case["kl"]["answers"]["top_1"] == same.mean() and case["same_answer"] == same.all()
    asked = sum(token >= 0 for token in request.token_ids[1:])
    assert case["kl"]["questions"]["n"] == asked
    assert len(case["positions"]["tokens"]) == asked + len(want) == case["kl"]["all"]["n"]


def test_image_rows(measured, folder):
    got = measured("-m", "text.gguf", "--mmproj", "half.gguf", "--against-mmproj", "mmproj.gguf", *PICTURES)
    rows = [
        llava_ref.load(None, folder / f, backend="numpy").encode_image(folder / "tall.png")
        for f in ("half.gguf", "mmproj.gguf")
    ]
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in rows]
    images = got["cases"][1]["images"]
    assert images["cosine_mean"] == pytest.approx((unit[0] * unit[1]).sum(1).mean(), abs=1e-6)
    assert images["rel_rms_worst"] == pytest.approx(rel_rms(*rows), rel=1e-3) and 1e-5 < images["rel_rms_worst"] < 1e-2
    assert {t["type"] for t in got["tensors"] if t["rel_rms"]} == {"F16"}
    assert got["layers"][0]["name"] == "vision.pos_embd" and got["layers"][0]["added"] > 0
    embd = next(layer for layer in got["layers"] if layer["name"] == "embd")
    assert embd["added"] == 0 < embd["carried"], "the decoder is fed the reference's rows"
    assert "v.patch_embd.weight" in {entry["label"] for entry in got["ranking"]}


@pytest.fixture(scope="module")
def odd_pairs(tmp_path_factory):
    """Tied embeddings, biases, and names swapped as old converters did; widths that fill blocks of 32."""
    found = {}
    for kind in ("F32", "Q8_0"):
        folder = tmp_path_factory.mktemp(kind)
        text = TextSpec(width=64, mlp_width=96, n_layer=2, tied=True, biases=True, kind=kind)
        vision = VisionSpec(width=32, mlp_width=64, n_block=2, n_head=2, middle=32, swapped=True, kind=kind)
        found[kind] = pairs.build(folder, text, vision)
    return found


def test_products_of_every_matrix(odd_pairs, measured):
    """Each against the stage that it computes, with the other file's weights multiplied by hand."""
    q, f = odd_pairs["Q8_0"], odd_pairs["F32"]
    arguments = ["-m", q.text, "--against-model", f.text, "--mmproj", q.mmproj, "--against-mmproj", f.mmproj]
    got = measured(*map(str, arguments), "--image", "tall.png", "-p", "a", "-n", "1", "--rank", "none")
    errors = {t["name"]: t["product_rel_rms"] for t in got["tensors"]}
    matrices = {t["name"] for t in got["tensors"] if t["rel_rms"]}
    assert {name for name, error in errors.items() if error is not None} == matrices
    stored = {
        t.name: gguf.dequantize(t.data, t.tensor_type) for p in (q.text, q.mmproj) for t in gguf.GGUFReader(p).tensors
    }
    model = llava_ref.load(f.text, f.mmproj, backend="numpy")
    parts = [{"type": "image", "image": "tall.png"}, {"type": "text", "text": "a"}]
    with model.trace() as trace:
        model.request_logits(model.request([{"role": "user", "content": parts}]))
    for stage, fed, name in (
        ("blk.1.ffn_out", "blk.1.ffn_swiglu", "blk.1.ffn_down"),
        ("blk.0.Kcur", "blk.0.attn_norm", "blk.0.attn_k"),
        ("blk.0.attn_out", "blk.0.kqv_out", "blk.0.attn_output"),
        ("vision.blk.1.ffn_up", "vision.blk.1.ffn_inp_normed", "v.blk.1.ffn_down"),
        ("vision.blk.0.ffn_out", "vision.blk.0.ffn_act", "v.blk.0.ffn_up"),
        ("projector.mm_0", "vision.features", "mm.0"),
    ):
        product = trace[fed] @ stored[f"{name}.weight"].T + stored[f"{name}.bias"]
        assert errors[f"{name}.weight"] == pytest.approx(rel_rms(product, trace[stage]), rel=1e-3), name
    tied = trace["result_norm"] @ stored["token_embd.weight"].T
    assert errors["token_embd.weight"] == pytest.approx(rel_rms(tied, trace["result_output"]), rel=1e-3)


def test_without_a_sibling_it_is_what_rounding_costs(measured, cli, folder):
    got = measured("-m", "q8.gguf", *PAIR)
    assert got["precision"] == "ggml" and got["kl"]["all"]["mean"] > 0 and got["ranking"] == []
    assert all(t["rel_rms"] == 0 for t in got["tensors"])
    errors = {t["name"]: t["product_rel_rms"] for t in got["tensors"] if t["product_rel_rms"] is not None}
    assert 1e-3 < errors["blk.1.ffn_down.weight"] < 2e-2, "activations in 8 bits"
    assert errors["v.blk.0.ffn_up.weight"] < 1e-6, "F32 weights are multiplied in float32"
    ggml, exact = (
        llava_ref.load(folder / "q8.gguf", folder / "mmproj.gguf", backend="numpy", precision=p)
        for p in ("ggml", "exact")
    )
    rows = [model.encode_image(folder / "tall.png") for model in (ggml, exact)]
    assert got["cases"][1]["images"]["rel_rms_worst"] == pytest.approx(rel_rms(*rows), rel=1e-3)
    status, _, err = cli("-m", "q8.gguf", *PAIR, "--precision", "exact")
    assert status == 2 and err.startswith("error: --precision: exact: a pair does not differ from itself")


def test_rounding_adds_to_the_loss_of_weights(measured):
    both = [
        measured("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR, "--rank", "none", "--precision", p)
        for p in ("exact", "ggml")
    ]
    products = [{t["name"]: t["product_rel_rms"] for t in got["tensors"]} for got in both]
    assert both[0]["tensors"][2]["rel_rms"] == both[1]["tensors"][2]["rel_rms"]
    assert products[1]["blk.0.ffn_up.weight"] != products[0]["blk.0.ffn_up.weight"]
    assert both[1]["kl"]["all"]["mean"] != both[0]["kl"]["all"]["mean"]


def test_a_text_model_alone_and_a_tower_alone(measured, cli):
    got = measured("-m", "q4.gguf", "--against-model", "text.gguf", "-p", "a", "-p", "the one", "-n", "3")
    assert got["images"] is None and [case["question"] for case in got["cases"]] == ["a", "the one"]
    assert got["kl"]["answers"]["n"] <= 6 and len(got["ranking"]) == 16
    got = measured("--mmproj", "half.gguf", "--against-mmproj", "mmproj.gguf", "--image", "tall.png")
    assert got["kl"] == {"all": None, "answers": None, "questions": None} and got["ranking"] == []
    assert got["images"]["rel_rms_worst"] > 0 and got["layers"][-1]["name"] == "projector.out"
    status, out, _ = cli("--mmproj", "half.gguf", "--against-mmproj", "mmproj.gguf", "--image", "tall.png")
    assert status == 0 and "image rows: cosine" in out
    assert "--prompt: missing" in cli("-m", "q4.gguf", "--against-model", "text.gguf")[2]
    assert "expected --mmproj too" in cli("-m", "q4.gguf", "--against-model", "text.gguf", *PICTURES)[2]
    assert "expected --mmproj too" in cli("-m", "q4.gguf", "--against-mmproj", "mmproj.gguf", "-p", "a")[2]


def test_the_embedded_pair_and_its_pictures_are_the_default(measured):
    got = measured("-n", "2")
    assert len(got["cases"]) == 8 and got["precision"] == "ggml"
    assert got["cases"][0]["question"] == "What colour is the circle?" and got["cases"][0]["answer"] == "purple"
    assert got["images"]["rel_rms_worst"] < 2e-3 and got["kl"]["answers"]["mean"] < 1e-3
    assert all(case["same_answer"] for case in got["cases"])


@pytest.mark.parametrize(
    "ours, theirs, field",
    [
        (Tiny(n_layer=3), Tiny(), "blk.2.attn_norm.weight: missing tensor"),
        (Tiny(), Tiny(n_layer=3), "blk.2.attn_norm.weight: missing tensor"),
        (Tiny(mlp_width=96), Tiny(), "blk.0.ffn_gate.weight: has shape [96, 32], but [64, 32]"),
        (Tiny(context=64), Tiny(), "context: is 64, but 128"),
        (Tiny(tied=True), Tiny(), "output.weight: missing tensor"),
    ],
)
def test_files_that_are_no_siblings(cli, folder, ours, theirs, field):
    write_text(folder / "ours.gguf", replace(ours, template=VICUNA))
    write_text(folder / "theirs.gguf", replace(theirs, template=VICUNA))
    status, out, err = cli("-m", "ours.gguf", "--against-model", "theirs.gguf", *PAIR)
    assert (status, out) == (2, "") and field in err and err.count("\n") == 1


def test_towers_that_are_no_siblings(folder):
    other = llava_ref.gguf.file.read(write_mmproj(folder / "other.gguf", Tiny(feature_layer=2)))
    with pytest.raises(PairError, match="feature_layer: is 2, but None"):
        siblings.check(FilePair(None, other), FilePair(None, llava_ref.gguf.file.read(folder / "mmproj.gguf")))


def test_another_vocabulary_is_refused(folder, monkeypatch):
    ours, theirs = (llava_ref.gguf.file.read(folder / "text.gguf") for _ in range(2))
    siblings.check(FilePair(ours, None), FilePair(theirs, None))
    tokens = list(ours["tokenizer.ggml.tokens"])
    tokens[300] = "other"
    plain = type(ours).__getitem__
    monkeypatch.setattr(
        type(ours), "__getitem__", lambda self, key: tokens if self is ours and "tokens" in key else plain(self, key)
    )
    with pytest.raises(PairError, match="tokenizer.ggml.tokens: differs"):
        siblings.check(FilePair(ours, None), FilePair(theirs, None))


def test_swap_takes_names_that_are_there(measured, cli):
    got = measured("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR, "--swap", "*.attn_q.*", "--swap", "output*")
    assert {entry["label"] for entry in got["ranking"]} == {
        "blk.0.attn_q.weight",
        "blk.1.attn_q.weight",
        "output.weight",
    }
    status, _, err = cli("-m", "q4.gguf", "--against-model", "text.gguf", *PAIR, "--swap", "v.blk.*")
    assert status == 2 and "--swap: 'v.blk.*': matches none of the 16 tensors that differ" in err


def test_exchanged_tensors_leave_the_file_alone(folder):
    q4, f32 = (llava_ref.gguf.file.read(folder / name) for name in ("q4.gguf", "text.gguf"))
    name = "blk.0.attn_v.weight"
    mixed = FilePair(q4, None).with_tensors({name: f32.tensors[name]})
    assert mixed.tensors()[name].type == "F32" and q4.tensors[name].type == "Q4_0"
    assert siblings.changed(mixed, FilePair(q4, None)) == [name]
    assert list(mixed.tensors()) == list(q4.tensors), "in the file's order"


def test_a_terminal_gets_words_and_the_page_stands_alone(cli, folder, monkeypatch):
    arguments = ["-m", "planted.gguf", "--against-model", "text.gguf", *PAIR, "--report", "report.html"]
    monkeypatch.setattr("llava_ref.tools.output.in_colour", lambda: True)
    status, out, err = cli(*arguments)
    assert status == 0 and err == "report.html: written\n"
    same, n = re.search(r"^\x1b\[3[12]m(\d+) of (\d+) greedy answers stay the same; .*\x1b\[0m$", out, re.M).groups()
    assert f"\x1b[{32 if same == n else 31}m{same} of" in out
    assert f"more bits: first of 2 is {BAD}" in out and re.search(rf"^{re.escape(BAD)} +Q4_0 +F32 +4\.50", out, re.M)
    assert "raising the first 1 takes" in out and "image rows: the same as the reference's" in out
    page = (folder / "report.html").read_text()
    assert "wide&lt;b&gt;.png" in page and "<b>.png" not in page
    assert page.count("data:image/png;base64,") == 2 and not re.search(r"https?://|<script|@import|url\(", page)
    assert page.count("<circle") == 10 + 2, "a mark for each layer, two in the curve"


def test_an_output_never_replaces_an_input(cli, folder):
    before = (folder / "text.gguf").read_bytes()
    status, _, err = cli("-m", "planted.gguf", "--against-model", "text.gguf", *PAIR, "--report", "text.gguf")
    assert status == 2 and "is one of the input files" in err and (folder / "text.gguf").read_bytes() == before


def test_names_of_layers_on_the_page():
    names = ["vision.pos_embd", "vision.blk.11.layer_out", "projector.out", "embd", "blk.3.out", "result_output"]
    assert [quality_page.short(name) for name in names] == ["in", "v11", "proj", "embd", "3", "out"]
