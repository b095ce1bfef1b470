"""llama.cpp behind its adapter: every stage by our name, in our shape, in our order; or a ReferenceError."""

from dataclasses import replace
from functools import cache
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.engines.llama_cpp.engine import LlamaCpp
from llava_ref.conformance.engines.llama_cpp.oracle import DEFAULTS, EXACT
from llava_ref.conformance.engines.llama_cpp.stages import Node, Recorder
from llava_ref.conformance.engines.reference import Case, ReferenceError, Run
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.conformance.pairs.writing import write
from llava_ref.tracing.distance import rel_rms

from .reference_cases import EVERYTHING, OF_PICTURES, build, differing, model_of, trace, worst

reason = oracle.missing()
needs_llama = pytest.mark.skipif(bool(reason), reason=str(reason))
pytestmark = pytest.mark.oracle
PICTURES, DECODER = 2e-3, 5e-6  # the tower reads GELU from a table of float16, and rounds pixels to float16
VARIANTS = {
    "GQA": (TextSpec(), VisionSpec()),
    "MHA, use_gelu": (TextSpec(n_head_kv=4), VisionSpec(use_gelu=True)),
    "MQA, post_ln": (TextSpec(n_head_kv=1, n_layer=2), VisionSpec(post_ln=True)),
    "biases, feature_layer 2": (TextSpec(biases=True), VisionSpec(feature_layer=2, post_ln=True)),
    "one head, no class token": (TextSpec(n_head=1, n_head_kv=1), VisionSpec(n_head=1, class_token=False)),
    "tied, yarn, no pre_ln": (
        TextSpec(tied=True, rope_scaling="yarn", rope_base=500.0, original_context=64),
        VisionSpec(pre_ln=False),
    ),
    "linear, swapped, small patches": (TextSpec(rope_scaling="linear"), VisionSpec(swapped=True, patch_size=8)),
    "divisors": (TextSpec(rope_divisors=True, rope_base=5e5), VisionSpec(image_size=42)),
    "one patch": (TextSpec(n_layer=1), VisionSpec(image_size=14, class_token=False)),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def run(name: str) -> tuple[Case, Run]:
        case = build(tmp_path_factory.mktemp("pair"), *VARIANTS[name])
        return case, LlamaCpp(stages=EVERYTHING).run(case, n_greedy=5)

    return run


def of_pictures(stages: Any, wanted: bool = True) -> dict[str, np.ndarray]:
    return {name: array for name, array in stages.items() if name.startswith(OF_PICTURES) == wanted}


@needs_llama
@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage(ran: Any, within: Any, name: str) -> None:
    case, run = ran(name)
    model = model_of(case, "llama.cpp")
    ours = trace(model, case)
    assert list(run.stages) == [stage for stage in ours if not stage.startswith("image.seen")]
    assert not differing(of_pictures(ours), of_pictures(run.stages), PICTURES)
    within("llama.cpp's adapter, stages of pictures", worst(of_pictures(ours), of_pictures(run.stages)), PICTURES)
    rows = [run.stages["projector.out"], run.stages["projector.out#1"]]
    with model.trace(*EVERYTHING) as fed:
        model.forward(parts(run.token_ids, rows))
    assert not differing(fed, of_pictures(run.stages, False), DECODER)
    within("llama.cpp's adapter, stages of the decoder", worst(fed, of_pictures(run.stages, False)), DECODER)


@needs_llama
def test_token_ids_and_what_follows(ran: Any) -> None:
    case, run = ran("GQA")
    model = model_of(case, "llama.cpp")
    request = model.raw_request(case.prompt, case.images)
    assert run.token_ids == tuple(request.token_ids) and run.token_ids.count(-1) == 32
    tokens = [int(model.request_logits(request)[-1].argmax())]
    rows = [model.encode_image(path) for path in case.images]
    while len(tokens) < 5:
        tokens.append(int(model.forward([*parts(run.token_ids, rows), tokens])[-1].argmax()))
    assert run.greedy == tuple(tokens)


@needs_llama
def test_no_two_stages_could_be_exchanged_unseen(ran: Any) -> None:
    _, run = ran("MHA, use_gelu")
    alike = [
        (a, b)
        for a, b in permutations(run.stages, 2)
        if run.stages[a].shape == run.stages[b].shape and rel_rms(run.stages[a], run.stages[b]) <= 2 * PICTURES
    ]
    assert not alike


@needs_llama
def test_a_wrong_mapping_is_caught(ran: Any) -> None:
    case, run = ran("MHA, use_gelu")
    ours = trace(model_of(case, "llama.cpp"), case)
    swapped = run.stages | {"blk.1.Qcur": run.stages["blk.1.Kcur"], "blk.1.Kcur": run.stages["blk.1.Qcur"]}
    assert differing(ours, swapped, PICTURES) == ["blk.1.Qcur", "blk.1.Kcur"]


@needs_llama
def test_it_reports_what_llama_cpp_computes_in_its_order(ran: Any, tmp_path: Path) -> None:
    """A picture of the model's size leaves two differences from the original: the class token's place and one layer."""
    case, _ = ran("GQA")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)).save(tmp_path / "square.png")
    case = replace(case, images=(tmp_path / "square.png",), prompt="<image>a")
    theirs, ours = LlamaCpp().run(case).stages, trace(model_of(case, "llava"), case)
    assert "vision.blk.3.Qcur" in ours and "vision.blk.3.Qcur" not in theirs
    assert differing(ours, of_pictures(theirs), PICTURES)[0] == "vision.pos_embd"
    assert rel_rms(ours["vision.pos_embd"], theirs["vision.pos_embd"]) > 0.5


@needs_llama
def test_attention_weights_of_a_prompt_in_several_calls(ran: Any) -> None:
    """Rows of the first call have no weight on what came after; every row sums to one."""
    _, run = ran("GQA")
    weights, T = run.stages["blk.0.kq_soft_max"], len(run.token_ids)
    assert weights.shape == (4, T, T) and np.allclose(weights.sum(-1), 1, atol=1e-5)
    assert not np.triu(weights, 1).any()


@needs_llama
def test_a_long_part_that_is_computed_in_pieces(tmp_path: Path) -> None:
    case = build(tmp_path, TextSpec(n_layer=1), VisionSpec(n_block=2), "the color" * 30 + "<image>")
    whole, pieces = (
        LlamaCpp(replace(EXACT, micro_batch=size), stages=EVERYTHING).run(case, n_greedy=2) for size in (1024, 32)
    )
    assert pieces.name.endswith("EXACT with micro_batch=32") and list(pieces.stages) == list(whole.stages)
    assert not differing(pieces.stages, whole.stages, 5e-5) and pieces.greedy == whole.greedy


@needs_llama
def test_a_prompt_longer_than_the_settings_context(tmp_path: Path) -> None:
    case = build(tmp_path, TextSpec(n_layer=1, context=2048), VisionSpec(n_block=2), "the color" * 600)
    run = LlamaCpp(DEFAULTS, stages=["result_norm"]).run(case)
    assert run.stages["result_norm"].shape == (len(run.token_ids), 48) and len(run.token_ids) > DEFAULTS.context


@needs_llama
def test_only_the_stages_asked_for(ran: Any) -> None:
    case, whole = ran("GQA")
    run = LlamaCpp(stages=["blk.*.out", "image.rgb"]).run(case)
    assert list(run.stages) == ["image.rgb", "image.rgb#1", "blk.0.out", "blk.1.out", "blk.2.out"]
    assert (run.stages["blk.2.out"] == whole.stages["blk.2.out"]).all()
    assert not any("kq_soft_max" in name for name in LlamaCpp(stages=["*"]).run(case).stages)


@needs_llama
def test_flash_attention_has_no_weights_and_is_named(ran: Any) -> None:
    case, exact = ran("GQA")
    run = LlamaCpp(DEFAULTS, stages=EVERYTHING).run(case)
    assert set(exact.stages) - set(run.stages) == {name for name in exact.stages if "kq_soft_max" in name}
    assert (run.about["attention"], exact.about["attention"]) == ("float16", "float32")
    assert run.name == "llama.cpp b11549 DEFAULTS" and exact.name == "llama.cpp b11549 EXACT"
    assert run.about["xllamacpp"].endswith("11549") and "projector.*" in run.about["found by operation, not by name"]


@needs_llama
def test_text_only_and_bos_once(ran: Any) -> None:
    case, _ = ran("GQA")
    runs = [LlamaCpp().run(Case(case.text, None, (), prompt)) for prompt in ("the color", "<s>the color")]
    assert runs[0].token_ids == runs[1].token_ids and runs[0].token_ids.count(1) == 1
    assert list(runs[0].stages)[0] == "embd" and runs[0].stages["embd"].shape == (len(runs[0].token_ids), 48)


@needs_llama
@pytest.mark.parametrize("tensor", ["mm.0.weight", "v.position_embd.weight"])
def test_a_crash_is_reported(ran: Any, tmp_path: Path, tensor: str) -> None:
    case, _ = ran("GQA")
    spec = VisionSpec()
    tensors = pairs.vision_tensors(spec, 48, pairs.Random(0, 1.0))
    del tensors[tensor]
    write(tmp_path / "bad.gguf", pairs.vision_metadata(spec, 48), tensors)
    with pytest.raises(
        ReferenceError, match=r"llama\.cpp b11549 EXACT: process: ended by SIGSEGV; last heard: running"
    ):
        LlamaCpp().run(replace(case, mmproj=tmp_path / "bad.gguf"))


@needs_llama
def test_a_refusal_is_reported(ran: Any, tmp_path: Path) -> None:
    case, _ = ran("GQA")
    one = replace(case, images=case.images[:1], prompt="<image>")
    Image.new("RGB", (20, 30)).save(tmp_path / "picture.webp")
    with pytest.raises(ReferenceError, match=r"cannot decode picture\.webp"):
        LlamaCpp().run(replace(one, images=(tmp_path / "picture.webp",)))
    with pytest.raises(ReferenceError, match=r"cannot load absent\.gguf"):
        LlamaCpp().run(replace(one, text=tmp_path / "absent.gguf"))
    with pytest.raises(ReferenceError, match="media markers"):
        LlamaCpp().run(replace(one, prompt="<image><__media__>"))
    with pytest.raises(ReferenceError, match=r"no answer after 0\.001 s"):
        LlamaCpp(timeout=0.001).run(one)


def test_a_case_that_cannot_be_run(tmp_path: Path) -> None:
    case = Case(tmp_path / "a.gguf", None, (), "<image>")
    with pytest.raises(ReferenceError, match="1 places for 0 pictures"):
        LlamaCpp().run(case)
    with pytest.raises(ReferenceError, match="pictures without an mmproj file"):
        LlamaCpp().run(replace(case, images=(tmp_path / "0.png",)))


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(oracle, "missing", lambda: "xllamacpp not installed: pip install 'llava-ref[conformance]'")
    with pytest.raises(ReferenceError, match=r"pip install 'llava-ref\[conformance\]'"):
        LlamaCpp().run(Case(tmp_path / "a.gguf", None, (), "a"))


def test_the_last_node_of_a_name_is_the_stage() -> None:
    """The nodes are a product, its bias added, the same seen as heads, and turned; llama.cpp is not needed."""

    def node(op: str, name: str, value: float, *shape: int, sources: tuple[str, ...] = ()) -> Node:
        array = np.full(shape, value, np.float32)
        return Node(name, op, sources, lambda axes: array, lambda i, axes: array)

    recorder = Recorder(["*"])
    recorder.decoder()
    recorder.see(node("RMS_NORM", "norm-0", 0, 2, 6, sources=("embd",)))
    recorder.see(node("MUL_MAT", "Qcur-0", 1, 2, 6))
    recorder.see(node("ADD", "Qcur-0", 2, 2, 6))
    recorder.see(node("RESHAPE", "Qcur-0", 3, 2, 3, 2))
    recorder.see(node("ROPE", "Qcur-0", 4, 2, 3, 2))
    recorder.see(node("MUL_MAT", "ffn_gate-0", 5, 2, 9))
    recorder.see(node("ADD", "ffn_gate_b-0", 6, 2, 9))
    recorder.see(node("SOFT_MAX", "kq_soft_max-0", 7, 3, 2, 256))
    recorder.stop()
    recorder.see(node("ADD", "Qcur-0", 9, 2, 6))
    found = recorder.arrays()
    assert {name: float(array.flat[0]) for name, array in found.items()} == {
        "embd": 0, "blk.0.Qcur": 2, "blk.0.Qcur_rope": 4, "blk.0.ffn_gate": 6,
    }  # fmt: skip
    assert found["blk.0.Qcur"].shape == (2, 6) and found["blk.0.Qcur_rope"].shape == (2, 3, 2)
