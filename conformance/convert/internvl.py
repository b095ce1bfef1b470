"""Convert a Hugging Face InternVL to the metadata and tensors of a GGUF pair.

The decoder is Qwen2's or llama's, so `qwen2vl` or `hf_config` and `hf_weights` convert it; names and keys are those of
llama.cpp b11549, conversion/intern_vision.py. A config may leave out any value that equals the default of its class, so
the defaults of transformers 5.24's InternVLConfig, InternVLVisionConfig, Qwen2Config and GotOcr2ImageProcessor are
repeated.
D width, F MLP width, P patch, S picture size, s patches along a side of one row's square.
"""

from collections.abc import Mapping
from typing import Any

from ..pairs.pairs import CLIP_MEAN, CLIP_STD
from ..pairs.writing import Metadata, StoredTensor
from . import hf_config, hf_weights, qwen2vl
from .hf_config import ConversionError
from .hf_weights import Source

QWEN2 = {
    **qwen2vl.TEXT, "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 1e4,
}  # fmt: skip
TOWER = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": [448, 448],
    "patch_size": [14, 14],
    "layer_norm_eps": 1e-6,
    "attention_bias": False,
    "use_qk_norm": False,
    "norm_type": "layer_norm",
}
FIXED = {  # of the tower: what a file cannot say otherwise
    "use_mean_pooling": True,
    "use_absolute_position_embeddings": True,
    "hidden_act": "gelu",
}
FIXED_BESIDE = {"vision_feature_layer": -1, "vision_feature_select_strategy": "default", "projector_hidden_act": "gelu"}
PROCESSOR = {"min_patches": 1, "max_patches": 12, "image_mean": CLIP_MEAN, "image_std": CLIP_STD}
PARTS = {  # of a block, in transformers' names and a file's
    "layernorm_before": "ln1",
    "attention.q_proj": "attn_q",
    "attention.k_proj": "attn_k",
    "attention.v_proj": "attn_v",
    "attention.projection_layer": "attn_out",
    "layernorm_after": "ln2",
    "mlp.fc1": "ffn_up",
    "mlp.fc2": "ffn_down",
}
Config = Mapping[str, Any]
Part = tuple[Metadata, dict[str, StoredTensor]]


def convert_internvl(source: Source, config: Config, processor: Config, n_kept: int) -> tuple[Part, Part]:
    """Return metadata and tensors of the text file, with the first `n_kept` rows of the vocabulary, and of the mmproj.
    Raises ConversionError."""
    text = _text(source, config, n_kept)
    width = text[1]["output_norm.weight"].shape[0]
    c = _settings(source.where, config)
    vision = _metadata(source.where, c, processor, width), _tensors(source, c, width)
    source.finish(())
    return text, vision


def n_vocab(where: str, config: Config) -> int:
    """Return the number of embeddings."""
    if _is_qwen2(where, config):
        return int({**QWEN2, **(config.get("text_config") or {})}["vocab_size"])
    return hf_config.read_text(where, config).n_vocab


def _is_qwen2(where: str, config: Config) -> bool:
    """Say whether the decoder is Qwen2's, and not llama's. Raises ConversionError for any other."""
    kind = (config.get("text_config") or {}).get("model_type", "qwen2")
    if kind not in ("qwen2", "llama"):
        raise ConversionError(where, "text_config.model_type", f"{kind!r} is not supported, expected qwen2 or llama")
    return bool(kind == "qwen2")


def _text(source: Source, config: Config, n_kept: int) -> Part:
    if _is_qwen2(source.where, config):
        settings = qwen2vl.text_settings(source.where, config, QWEN2)
        keys = qwen2vl.text_metadata(source.where, settings, "qwen2")
        return keys, qwen2vl.text_tensors(source, settings, n_kept)
    shape = hf_config.read_text(source.where, config)
    return shape.metadata, hf_weights.text_tensors(source, shape, n_kept)


def _settings(where: str, config: Config) -> dict[str, Any]:
    """Return the tower's settings, sides as one number, `s` among them."""
    c = {**TOWER, **FIXED, **(config.get("vision_config") or {})}
    for key, want in FIXED.items():
        if c[key] != want:
            raise ConversionError(where, f"vision_config.{key}", f"{c[key]!r} is not supported, expected {want!r}")
    want = "rms_norm" if c["use_qk_norm"] else "layer_norm"  # InternViT-6B, or any other
    if c["norm_type"] != want:
        problem = f"{c['norm_type']!r} is not supported with use_qk_norm {c['use_qk_norm']}, expected {want!r}"
        raise ConversionError(where, "vision_config.norm_type", problem)
    for key, want in FIXED_BESIDE.items():
        if (found := config.get(key, want)) != want:
            raise ConversionError(where, key, f"{found!r} is not supported, expected {want!r}")
    for key in ("image_size", "patch_size"):
        sides = c[key] if isinstance(c[key], list | tuple) else [c[key]]
        if len(set(sides)) != 1:
            raise ConversionError(where, f"vision_config.{key}", f"{sides} is not square")
        c[key] = sides[0]
    c["s"] = round(1 / config.get("downsample_ratio", 0.5))
    return c


def _metadata(where: str, c: Config, processor: Config, text_width: int) -> Metadata:
    v, side, p = "clip.vision.", c["image_size"], {**PROCESSOR, **processor}
    size = p.get("size") or {}
    if {size.get("height", side), size.get("width", side)} != {side}:
        raise ConversionError(where, "size", f"{size} for the processor, {side} for the model")
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "internvl",
        "clip.use_gelu": True,
        v + "image_size": side,
        v + "patch_size": c["patch_size"],
        v + "embedding_length": c["hidden_size"],
        v + "feed_forward_length": c["intermediate_size"],
        v + "block_count": c["num_hidden_layers"],
        v + "projection_dim": text_width,
        v + "projector.scale_factor": c["s"],
        v + "preproc_min_tiles": p["min_patches"],
        v + "preproc_max_tiles": p["max_patches"],
        v + "attention.head_count": c["num_attention_heads"],
        v + "attention.layer_norm_epsilon": float(c["layer_norm_eps"]),
        v + "image_mean": [float(x) for x in p["image_mean"]],
        v + "image_std": [float(x) for x in p["image_std"]],
    }


def _tensors(source: Source, c: Config, text_width: int) -> dict[str, StoredTensor]:
    D, P, name, projector = c["hidden_size"], c["patch_size"], "vision_tower.embeddings", "multi_modal_projector"
    squares, T = c["s"] ** 2 * D, (c["image_size"] // P) ** 2 + 1
    tensors = {
        "v.class_embd": _plain(source.take(f"{name}.cls_token", (1, 1, D)), (D,)),
        "v.position_embd.weight": _plain(source.take(f"{name}.position_embeddings", (1, T, D)), (T, D)),
        **_affine(source, f"{name}.patch_embeddings.projection", "v.patch_embd", (D, 3, P, P)),
        **_affine(source, f"{projector}.layer_norm", "mm.model.mlp.0", (squares,)),
        **_affine(source, f"{projector}.linear_1", "mm.model.mlp.1", (text_width, squares)),
        **_affine(source, f"{projector}.linear_2", "mm.model.mlp.3", (text_width, text_width)),
    }
    for i in range(c["num_hidden_layers"]):
        tensors |= _block(source, f"vision_tower.encoder.layer.{i}", f"v.blk.{i}", c)
    return tensors


def _block(source: Source, name: str, to: str, c: Config) -> dict[str, StoredTensor]:
    D, F = c["hidden_size"], c["intermediate_size"]
    tensors: dict[str, StoredTensor] = {}
    shapes: dict[str, tuple[int, ...]] = {"ln1": (D,), "ln2": (D,), "ffn_up": (F, D), "ffn_down": (D, F)}
    for part, gguf in PARTS.items():
        unbiased = () if c["attention_bias"] else ("attn_q", "attn_k", "attn_v")
        biased = gguf not in (*unbiased, *(("ln1", "ln2") if c["use_qk_norm"] else ()))
        tensors |= _affine(source, f"{name}.{part}", f"{to}.{gguf}", shapes.get(gguf, (D, D)), biased)
    for i in (1, 2):
        tensors[f"{to}.ls{i}.weight"] = source.take(f"{name}.lambda_{i}", (D,))
    for part in "qk" if c["use_qk_norm"] else "":
        tensors[f"{to}.attn_{part}_norm.weight"] = source.take(f"{name}.attention.{part}_norm.weight", (D,))
    return tensors


def _affine(source: Source, name: str, to: str, shape: tuple[int, ...], biased: bool = True) -> dict[str, StoredTensor]:
    weight = {f"{to}.weight": source.take(f"{name}.weight", shape)}
    return weight | ({f"{to}.bias": source.take(f"{name}.bias", shape[:1])} if biased else {})


def _plain(tensor: StoredTensor, shape: tuple[int, ...]) -> StoredTensor:
    """Return a tensor without its axes of 1."""
    return StoredTensor(shape, lambda: tensor.load().reshape(shape))
