"""The converter on Gemma 3: the way there and back, from folders of transformers 4 and 5, checked by llama.cpp."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file

from llava_ref import gguf
from llava_ref.conformance.convert import cli as convert
from llava_ref.conformance.convert.hf_config import ConversionError
from llava_ref.conformance.engines.hf import tiny as reference_hf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs.gemma3 import Gemma3Spec, SiglipSpec, build_gemma3
from llava_ref.conformance.pairs.gemma3_vocabulary import gemma_vocabulary
from llava_ref.conformance.pairs.pairs import Pair
from llava_ref.tracing.distance import rel_rms

reason = reference_hf.missing() or oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SPECS = {
    "window, linear": (Gemma3Spec(rope_factor=8.0, rope_base_swa=500.0), SiglipSpec()),
    "another period, merge 4": (Gemma3Spec(n_layer=4, pattern=3, n_head_kv=1), SiglipSpec(merge=4, image_size=112)),
    "all layers full": (Gemma3Spec(n_layer=2, window=None), SiglipSpec(n_block=1)),
}
STRINGS = [
    "what is the color",
    "  two\n\n\nthree <start_of_turn>user\n<image_soft_token>é漢",
    "a<table> b\t\n \n",
    "▁x<end_of_turn>",
]


def module(pair: Pair) -> Any:
    from llava_ref.conformance.engines.hf import from_gguf

    return from_gguf.load(pair.text, pair.mmproj).module


def tensors(path: Path) -> dict[str, Any]:
    return dict(gguf.read(path).tensors)


def keys(path: Path, *prefixes: str) -> dict[str, Any]:
    file = gguf.read(path)
    return {key: file[key] for key in file if key.startswith(prefixes)}


def check_equal(found: Path, want: Path) -> None:
    """Compare matrices bit for bit, and gains, which lost 1 and got it back, to one unit in the last place."""
    ours, theirs = tensors(found), tensors(want)
    assert ours.keys() == theirs.keys()
    for name, view in theirs.items():
        assert (ours[name].type, ours[name].shape) == (view.type, view.shape), name
        if bytes(ours[name].data) != bytes(view.data):
            gains = [np.frombuffer(x.data, np.float32) for x in (ours[name], view)]
            assert "norm" in name and np.abs(gains[0] - gains[1]).max() <= 2**-22, name


@pytest.mark.parametrize("name", SPECS)
def test_a_pair_comes_back_from_transformers(tmp_path: Path, name: str) -> None:
    text, vision = SPECS[name]
    pair = build_gemma3(tmp_path, text, vision)
    found = convert.from_module(module(pair), gemma_vocabulary(), str(tmp_path / "again"))
    check_equal(found.text, pair.text)
    check_equal(found.mmproj, pair.mmproj)
    swa = {"gemma3.rope.freq_base_swa": text.rope_base_swa or 1e4}
    assert keys(found.text, "gemma3.", "tokenizer.") == keys(pair.text, "gemma3.", "tokenizer.") | swa
    assert keys(found.mmproj, "clip.", "general.") == keys(pair.mmproj, "clip.", "general.")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """Save a random model of transformers' own, with its tokenizer and with rows for padding."""
    from transformers import Gemma3Config, Gemma3ForConditionalGeneration

    from llava_ref.conformance.engines.hf.gemma3_prompt import gemma_tokenizer

    folder = tmp_path_factory.mktemp("hf") / "tiny-gemma"
    pair = build_gemma3(tmp_path_factory.mktemp("pair"), Gemma3Spec(n_layer=1), SiglipSpec())
    vocabulary: Any = gemma_vocabulary()
    n = len(vocabulary["tokenizer.ggml.tokens"])
    text = dict(vocab_size=n + 9, hidden_size=60, intermediate_size=88, num_hidden_layers=7, num_attention_heads=4)
    text |= dict(num_key_value_heads=2, head_dim=16, query_pre_attn_scalar=16, sliding_window=5)
    vision = dict(hidden_size=36, intermediate_size=68, num_hidden_layers=2, num_attention_heads=3)
    vision |= dict(image_size=84, patch_size=14)
    config = Gemma3Config(
        text_config=text,
        vision_config=vision,
        mm_tokens_per_image=9,
        image_token_index=n - 1,
        attn_implementation="eager",
    )
    model = Gemma3ForConditionalGeneration(config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            size = 0.3 if "norm" in name or parameter.ndim == 1 else 0.25 if "embed_tokens" in name else None
            parameter.copy_(noise * (size or parameter[0].numel() ** -0.5))
    model.save_pretrained(folder)
    gemma_tokenizer(gguf.read(pair.text)).save_pretrained(folder)
    return model, folder


@pytest.fixture
def folder(checkpoint: tuple[Any, Path], tmp_path: Path) -> Path:
    """Copy the checkpoint, so that a test may spoil it."""
    return Path(shutil.copytree(checkpoint[1], tmp_path / "tiny-gemma"))


def logits_of_both(model: Any, pair: Pair) -> tuple[float, float]:
    """Return relRMS of image rows and of logits: llama.cpp on the pair, transformers on its own model."""
    rgb = np.random.default_rng(0).integers(0, 256, (84, 84, 3), np.uint8)
    llama = oracle.Oracle(pair.text, pair.mmproj)
    (image,) = llama.encode([rgb])
    before, after, soft = [2, 300, 301], list(range(310, 320)), model.config.image_token_index
    (answer,) = llama.logits([[before, image.rows, after]])
    ids = torch.tensor([[*before, *[soft] * 9, *after]])
    pixels = torch.from_numpy(image.pixels)[None]
    with torch.no_grad():
        rows = model.get_image_features(pixels).pooler_output[0].numpy()
        logits = model(input_ids=ids, pixel_values=pixels, token_type_ids=(ids == soft).long()).logits[0].numpy()
    return rel_rms(image.rows, rows), rel_rms(answer.logits, logits[:, : answer.logits.shape[1]])


def test_llama_cpp_runs_a_converted_folder_as_transformers_does(
    checkpoint: tuple[Any, Path], tmp_path: Path, within: Any
) -> None:
    model, folder = checkpoint
    rows, logits = logits_of_both(model, convert.convert_folder(folder, str(tmp_path / "out"), "F32"))
    within("Gemma 3 converted: llama.cpp and transformers, image rows", rows, 1e-3)
    within("Gemma 3 converted: llama.cpp and transformers, logits", logits, 2e-3)


@pytest.mark.parametrize("fault", ["_plus_one", "take_first"])
def test_a_wrong_conversion_is_caught(
    checkpoint: tuple[Any, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """The faults: gains without their +1; the vocabulary's rows one off."""
    from llava_ref.conformance.convert.hf_weights import Source

    model, folder = checkpoint
    if fault == "_plus_one":
        monkeypatch.setattr("llava_ref.conformance.convert.gemma3._plus_one", lambda gains: gains)
    else:
        first = Source.take_first

        def shifted(self: Source, rows: int, name: str, shape: tuple[int, ...]) -> Any:
            tensor = first(self, rows, name, shape)
            return replace(tensor, load=lambda: np.roll(tensor.load(), 1, 0))

        monkeypatch.setattr(Source, "take_first", shifted)
    assert logits_of_both(model, convert.convert_folder(folder, str(tmp_path / "out"), "F32"))[1] > 0.1


def test_the_tokenizer_of_a_folder_gives_the_same_ids(checkpoint: tuple[Any, Path], tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    pair = convert.convert_folder(checkpoint[1], str(tmp_path / "out"))
    theirs = AutoTokenizer.from_pretrained(checkpoint[1])
    assert oracle.Oracle(pair.text).tokenize(STRINGS) == [theirs(string)["input_ids"] for string in STRINGS]
    file, want = gguf.read(pair.text), gemma_vocabulary()
    assert file.array_length("tokenizer.ggml.tokens") == tensors(pair.text)["token_embd.weight"].shape[0]
    texts, kinds = file["tokenizer.ggml.tokens"], file["tokenizer.ggml.token_type"]
    assert len(texts) == len(want["tokenizer.ggml.tokens"])  # type: ignore[arg-type]  # no rows for padding
    assert [kinds[texts.index(text)] for text in ("<bos>", "<start_of_turn>", "\n\n", "<table>", "<0x0A>")] == [
        3, 3, 4, 4, 6,
    ]  # fmt: skip
    assert (file["tokenizer.ggml.bos_token_id"], file["tokenizer.ggml.eos_token_id"]) == (2, 1)
    assert file["tokenizer.ggml.add_space_prefix"] is False


def edit(folder: Path, **change: Any) -> None:
    """Set keys of config.json; PART__KEY is a key of the text or vision config; None removes it."""
    config = json.loads((folder / "config.json").read_text())
    for key, value in change.items():
        part, _, name = key.rpartition("__")
        target = config[part] if part else config
        target.pop(name, None)
        if value is not None:
            target[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_of_transformers_4_gives_the_same_pair(
    checkpoint: tuple[Any, Path], folder: Path, tmp_path: Path
) -> None:
    weights = load_file(folder / "model.safetensors")
    renamed = {name.replace("vision_tower.", "vision_tower.vision_model."): x for name, x in weights.items()}
    assert renamed.keys() != weights.keys()
    save_file(renamed, folder / "model.safetensors")
    old = {"rope_theta": 1e6, "rope_local_base_freq": 1e4, "sliding_window_pattern": 6, "rope_parameters": None}
    edit(folder, **{f"text_config__{key}": value for key, value in old.items()}, text_config__layer_types=None)
    want = convert.convert_folder(checkpoint[1], str(tmp_path / "want"))
    found = convert.convert_folder(folder, str(tmp_path / "found"))
    assert found.text.read_bytes() == want.text.read_bytes()
    assert found.mmproj.read_bytes() == want.mmproj.read_bytes()


def test_narrow_types_leave_the_kernel_and_the_projection_as_they_are(folder: Path, tmp_path: Path) -> None:
    pair = convert.convert_folder(folder, str(tmp_path / "out"), "BF16")
    found = {name: view.type for name, view in (tensors(pair.text) | tensors(pair.mmproj)).items()}
    assert found["v.patch_embd.weight"] == found["v.position_embd.weight"] == found["blk.0.attn_q_norm.weight"] == "F32"
    assert found["mm.input_projection.weight"] == "F16" and found["v.blk.0.attn_q.weight"] == "BF16"


@pytest.mark.parametrize(
    "change, field",
    [
        ({"text_config__hidden_activation": "silu"}, "text_config.hidden_activation"),
        ({"text_config__attention_bias": True}, "text_config.attention_bias"),
        ({"text_config__final_logit_softcapping": 30.0}, "text_config.final_logit_softcapping"),
        ({"text_config__query_pre_attn_scalar": 8}, "text_config.query_pre_attn_scalar"),
        ({"text_config__layer_types": ["full_attention"] + ["sliding_attention"] * 6}, "text_config.layer_types"),
        ({"text_config__rope_parameters": {"full_attention": {"rope_type": "yarn"}}}, "text_config.rope_parameters"),
        ({"text_config__model_type": "gemma2"}, "text_config.model_type"),
        ({"vision_config__model_type": "clip_vision_model"}, "vision_config.model_type"),
        ({"vision_config__hidden_act": "gelu"}, "vision_config.hidden_act"),
        ({"mm_tokens_per_image": 8}, "mm_tokens_per_image"),
        ({"text_config__intermediate_size": 96}, "language_model.layers.0.mlp.gate_proj.weight"),
        ({"text_config__num_hidden_layers": 6, "text_config__layer_types": None}, "language_model.layers.6"),
    ],
)
def test_what_a_pair_cannot_say_is_refused(folder: Path, tmp_path: Path, change: dict[str, Any], field: str) -> None:
    edit(folder, **change)
    with pytest.raises(ConversionError) as caught:
        convert.convert_folder(folder, str(tmp_path / "out"))
    assert caught.value.field.startswith(field)
