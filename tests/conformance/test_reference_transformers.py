"""transformers behind its adapter, from a GGUF pair: every stage by our name, in our shape, in our order; or a
ReferenceError."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from llava_ref import gguf
from llava_ref.conformance.compare.comparing import parts
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.hf.engine import Transformers
from llava_ref.conformance.engines.reference import Case, ReferenceError, Run
from llava_ref.conformance.pairs import pairs
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.conformance.pairs.vocabulary import n_vocab
from llava_ref.conformance.pairs.writing import StoredTensor, held, write

from .reference_cases import EVERYTHING, OF_PICTURES, build, differing, model_of, trace, worst

reason = reference_hf.missing()
needs_transformers = pytest.mark.skipif(bool(reason), reason=str(reason))
pytestmark = pytest.mark.oracle
BOUND = 2e-5
VARIANTS = {
    "GQA": (TextSpec(), VisionSpec()),
    "MHA, use_gelu": (TextSpec(n_head_kv=4), VisionSpec(use_gelu=True)),
    "MQA, post_ln": (TextSpec(n_head_kv=1, n_layer=2), VisionSpec(post_ln=True)),
    "biases, feature_layer 2": (TextSpec(biases=True), VisionSpec(feature_layer=2, middle=48)),
    "tied, swapped": (TextSpec(tied=True), VisionSpec(swapped=True, patch_size=8)),
    "linear, large eps": (TextSpec(rope_scaling="linear", eps=0.05), VisionSpec(eps=0.05)),
    "yarn": (TextSpec(rope_scaling="yarn", rope_base=500.0, original_context=64), VisionSpec(image_size=42)),
    "divisors": (TextSpec(rope_divisors=True, rope_base=5e5), VisionSpec(n_head=1)),
    "window": (TextSpec(window=7), VisionSpec(n_block=1)),
}


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def run(name: str) -> tuple[Case, Run]:
        case = build(tmp_path_factory.mktemp("pair"), *VARIANTS[name])
        return case, Transformers(stages=EVERYTHING).run(case, n_greedy=5)

    return run


@needs_transformers
@pytest.mark.parametrize("name", VARIANTS)
def test_every_stage(ran: Any, within: Any, name: str) -> None:
    case, run = ran(name)
    ours = trace(model_of(case, "hf"), case)
    assert list(run.stages) == list(ours)
    assert not differing(ours, run.stages, BOUND)
    within("transformers' adapter, every stage", worst(ours, run.stages), BOUND)
    for exact in ("image.rgb", "image.seen#1", "vision.pixels"):
        assert (ours[exact] == run.stages[exact]).all()


@needs_transformers
def test_profile_llava_agrees_from_the_pixels_on(ran: Any) -> None:
    """Both profiles see a picture of the model's own size alike."""
    case, _ = ran("GQA")
    path = case.images[0].parent / "square.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (56, 56, 3), np.uint8)).save(path)
    case = replace(case, images=(path,), prompt="<image>")
    run, ours = Transformers().run(case), trace(model_of(case, "llava"), case)
    assert not differing(ours, run.stages, BOUND) and run.token_ids == (1, *[-1] * 16)


@needs_transformers
def test_token_ids_and_what_follows(ran: Any) -> None:
    case, run = ran("GQA")
    model = model_of(case, "hf")
    request = model.raw_request(case.prompt, case.images)
    assert run.token_ids == tuple(request.token_ids) and run.token_ids.count(-1) == 32
    rows, n = [model.encode_image(path) for path in case.images], len(run.token_ids)
    logits = model.forward([*parts(run.token_ids, rows), run.greedy[:-1]])
    assert run.greedy == tuple(logits[n - 1 :].argmax(-1)) and len(run.greedy) == 5


@needs_transformers
def test_the_row_of_the_image_token_is_never_chosen(ran: Any) -> None:
    from llava_ref.conformance.engines.hf import from_gguf as hf_from_gguf

    model = hf_from_gguf.load(ran("GQA")[0].text, None)
    logits = torch.full((1, 1, model.n_vocab + 1), -2.0)
    logits[0, 0, 7], logits[0, 0, model.image_token] = -1.0, 0.0
    assert model.greedy(SimpleNamespace(logits=logits), 1) == (7,)


@needs_transformers
def test_a_wrong_mapping_is_caught(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Heads left in halves change what the stages show of Q and K, and nothing after them."""
    case, _ = ran("GQA")
    monkeypatch.setattr("llava_ref.conformance.engines.hf.llava_stages.adjacent_pairs", lambda x, size: x)
    run, ours = Transformers(stages=EVERYTHING).run(case), trace(model_of(case, "hf"), case)
    wrong = {f"blk.{i}.{part}{turned}" for i in range(3) for part in ("Qcur", "Kcur") for turned in ("", "_rope")}
    assert set(differing(ours, run.stages, BOUND)) == wrong


@needs_transformers
def test_weights_in_the_wrong_order_are_caught(ran: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    case, _ = ran("GQA")
    monkeypatch.setattr("llava_ref.conformance.engines.hf.llava.in_halves", lambda rows, n_head: rows)
    run, ours = Transformers().run(case), trace(model_of(case, "hf"), case)
    assert differing(ours, run.stages, BOUND)[0] == "blk.0.Qcur"


@needs_transformers
def test_a_wrong_quirk_is_caught_where_it_is(ran: Any) -> None:
    case, run = ran("GQA")
    ours = trace(model_of(case, "llama.cpp"), case)
    assert differing(ours, {name: run.stages[name] for name in ours if name in run.stages}, BOUND)[0] == "image.seen"


@needs_transformers
def test_only_the_stages_asked_for(ran: Any) -> None:
    case, whole = ran("GQA")
    run = Transformers(stages=["blk.*.out", "image.rgb", "vision.blk.1.kq_soft_max"]).run(case)
    blocks = [f"blk.{i}.out" for i in range(3)]
    assert list(run.stages) == [
        "image.rgb", "vision.blk.1.kq_soft_max", "image.rgb#1", "vision.blk.1.kq_soft_max#1", *blocks,
    ]  # fmt: skip
    assert (run.stages["blk.2.out"] == whole.stages["blk.2.out"]).all()
    assert not any("kq_soft_max" in name for name in Transformers().run(case).stages)


@needs_transformers
def test_text_only_and_bos_once(ran: Any) -> None:
    case, _ = ran("GQA")
    for prompt in ("the color", "<s>the color"):
        alone = Case(case.text, None, (), prompt)
        run, ours = Transformers(stages=EVERYTHING).run(alone), trace(model_of(alone, "hf"), alone)
        assert run.token_ids.count(1) == 1 and list(run.stages) == list(ours)
        assert not differing(ours, run.stages, BOUND)


@needs_transformers
def test_about_says_what_is_not_transformers_own(ran: Any) -> None:
    _, run = ran("GQA")
    assert run.name.startswith("transformers 5.") and run.about["arithmetic"] == "float32"
    assert run.about["token ids"].startswith("transformers' LlamaTokenizer")
    assert "applied to its projections once more" in run.about["Qcur_rope, Kcur_rope"]


@needs_transformers
def test_a_bpe_vocabulary_is_read_by_our_own_tokenizer_and_said_so(tmp_path: Path) -> None:
    from llava_ref.tokenizer.bpe import byte_letters

    spec, letters = TextSpec(n_layer=1), byte_letters()
    vocabulary: dict[str, Any] = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": [*letters, "ab", "<eos>"],
        "tokenizer.ggml.token_type": [1] * 257 + [3],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 257,
    }
    metadata = {k: v for k, v in pairs.text_metadata(spec).items() if not k.startswith("tokenizer.")} | vocabulary
    tensors = pairs.text_tensors(spec, pairs.Random(0, 1.0))
    for name in ("token_embd.weight", "output.weight"):
        tensors[name] = held(tensors[name].load()[:258])
    write(tmp_path / "bpe.gguf", metadata, tensors)
    run = Transformers(stages=["embd"]).run(Case(tmp_path / "bpe.gguf", None, (), "abc"))
    assert run.token_ids == (256, letters.index("c"))
    assert run.about["token ids"].startswith("this project's tokenizer under profile hf, not transformers")


def changed(case: Case, folder: Path, part: str, key: str, value: Any) -> Case:
    """Write the pair with one tensor or key of its text or mmproj file set, or left out if the value is None."""
    random = pairs.Random(0, 1.0)
    text, vision = TextSpec(biases=key == "llama.attention.sliding_window"), VisionSpec()
    metadata = dict(pairs.text_metadata(text) if part == "text" else pairs.vision_metadata(vision, 48))
    tensors: dict[str, StoredTensor] = (
        pairs.text_tensors(text, random) if part == "text" else pairs.vision_tensors(vision, 48, random)
    )
    target: dict[str, Any] = metadata if key.startswith(("llama.", "clip.")) else tensors
    target[key] = value
    kept = [{name: x for name, x in group.items() if x is not None} for group in (metadata, tensors)]
    write(folder / "changed.gguf", *kept)  # type: ignore[arg-type]
    return replace(case, **{part: folder / "changed.gguf"})


@needs_transformers
@pytest.mark.parametrize(
    "part, key, value, problem",
    [
        ("mmproj", "v.class_embd", None, "v.class_embd: missing tensor: transformers' CLIP tower always has one"),
        ("mmproj", "v.pre_ln.weight", None, "v.pre_ln.weight: missing tensor"),
        ("mmproj", "v.patch_embd.bias", held(np.ones(40, np.float32)), "v.patch_embd.bias: this model has no use"),
        ("mmproj", "mm.0.weight", None, "mm.0.weight: missing tensor"),
        ("text", "output.bias", held(np.ones(n_vocab(), np.float32)), "output.bias: this model has no use"),
        ("text", "llama.attention.sliding_window", 8, "sliding_window: with biases: transformers' model has no place"),
        (
            "text",
            "blk.0.attn_k.weight",
            held(np.ones((48, 48), np.float32)),
            r"has shape \[48, 48\], expected \[24, 48",
        ),
    ],
)
def test_what_transformers_cannot_express_is_refused_by_name(
    ran: Any, tmp_path: Path, part: str, key: str, value: Any, problem: str
) -> None:
    with pytest.raises(ReferenceError, match=rf"changed\.gguf: .*{problem}"):
        Transformers().run(changed(ran("GQA")[0], tmp_path, part, key, value))


@needs_transformers
def test_a_bias_that_only_some_projections_have_is_zero_for_the_others(ran: Any, tmp_path: Path) -> None:
    case = changed(ran("GQA")[0], tmp_path, "text", "blk.1.attn_k.bias", held(np.arange(24, dtype=np.float32)))
    run, ours = Transformers().run(case), trace(model_of(case, "hf"), case)
    assert not differing(ours, {k: v for k, v in run.stages.items() if not k.startswith(OF_PICTURES)}, BOUND)


@needs_transformers
@pytest.mark.parametrize("error", [RuntimeError("out of tune"), KeyError("x"), AssertionError(), MemoryError()])
def test_whatever_goes_wrong_in_there_is_a_reference_error(
    ran: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr("llava_ref.conformance.engines.hf.llava._module", fail)
    with pytest.raises(ReferenceError, match=rf"transformers 5\.\S+ float32: {type(error).__name__}: {error}"):
        Transformers().run(ran("GQA")[0])


@needs_transformers
def test_files_that_cannot_be_read_are_named(ran: Any, tmp_path: Path) -> None:
    case, _ = ran("GQA")
    (tmp_path / "not.gguf").write_bytes(b"GGUF" + bytes(9))
    (tmp_path / "not.png").write_bytes(b"no picture")
    with pytest.raises(ReferenceError, match=r"not\.gguf"):
        Transformers().run(replace(case, text=tmp_path / "not.gguf"))
    with pytest.raises(ReferenceError, match=r"UnidentifiedImageError: .*not\.png"):
        Transformers().run(replace(case, images=(tmp_path / "not.png",) * 2))
    with pytest.raises(ReferenceError, match="1 places for 2 pictures"):
        Transformers().run(replace(case, prompt="<image>"))


def test_an_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llava_ref.extras.find_spec", lambda name: None)
    with pytest.raises(ReferenceError, match="the conformance extra is missing: pip install"):
        Transformers().run(Case(tmp_path / "a.gguf", None, (), "a"))


PROMPTS = [
    "USER: <image>\nwhat color is the circle? ASSISTANT:",
    "what is the shape <image><image> and how many</s>a small one",
    "  two spaces, é and 漢 <image> ",
    "</s> <s>  the blue square\n\n",
]


@needs_transformers
@pytest.mark.parametrize("prompt", PROMPTS)
def test_transformers_tokenizer_and_ours_agree(ran: Any, prompt: str) -> None:
    from llava_ref.conformance.engines.hf import vocabulary as hf_vocabulary

    file = gguf.read(ran("GQA")[0].text)
    rows = [3, 4][: prompt.count("<image>")]
    theirs, whose = hf_vocabulary.token_ids(file, prompt, 5000, rows)
    assert theirs == hf_vocabulary._ours(file, prompt, 5000, rows) and theirs.count(5000) == sum(rows)
    assert whose == hf_vocabulary.THEIRS
