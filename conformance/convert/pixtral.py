"""Convert a Hugging Face Pixtral (`llava` with a Pixtral tower) or Mistral Small 3.1 (`mistral3`) to a GGUF pair.

The decoder is llama's, so `hf_config` and `hf_weights` convert it. Rows of the tower's Q and K are reordered to
adjacent pairs, too; the row of `[IMG_BREAK]` stands in the mmproj once more (llama.cpp b11549, conversion/llava.py). A
config may leave out any value that equals the default of its class: those of transformers 5.24's PixtralVisionConfig
are repeated.
D width, F MLP width, P patch, s patches a side of one row's square.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from ..pairs.pairs import CLIP_MEAN, CLIP_STD
from ..pairs.writing import Metadata, StoredTensor
from .hf_config import ConversionError, TextShape, read_text
from .hf_weights import Source, adjacent_pairs, text_tensors

TOWER = "pixtral"
VISION = {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "image_size": 1024,
    "patch_size": 16,
    "hidden_act": "gelu",
}
ACTIVATIONS = {"silu": "clip.use_silu", "gelu": "clip.use_gelu"}
EPS = 1e-5  # of the tower's norms, in transformers' code
REPEATED = {"v.token_embd.img_break": "[IMG_BREAK]"}
"""Tensors of the mmproj that are the row of a token in the text's table."""

Config = Mapping[str, Any]


def convert_pixtral(
    source: Source, config: Config, processor: Config, n_kept: int
) -> tuple[tuple[Metadata, dict[str, StoredTensor]], tuple[Metadata, dict[str, StoredTensor]]]:
    """Return metadata and tensors of the text file, with the first `n_kept` rows of the vocabulary, and of the mmproj
    without those of `REPEATED`. Raises ConversionError."""
    text = read_text(source.where, config)
    vision = _vision(source.where, config, processor, text)
    parts = (
        (text.metadata, text_tensors(source, text, n_kept)),
        (_metadata(vision, processor, text), _tensors(source, vision, text)),
    )
    source.finish(())
    return parts


def _vision(where: str, config: Config, processor: Config, text: TextShape) -> dict[str, Any]:
    """Return the tower's settings, and of the projector `merge`, 0 for none, and `bias`. Raises ConversionError."""
    merged = config.get("model_type") == "mistral3"
    c: dict[str, Any] = {**VISION, **(config.get("vision_config") or {})}
    c["merge"] = config.get("spatial_merge_size", 2) if merged else 0
    c["bias"] = bool(config.get("multimodal_projector_bias", not merged))
    for key, found, want in _fixed(config, c, processor, merged):
        if found != want:
            raise ConversionError(where, key, f"{found!r} is not supported, expected {want!r}")
    # A file has one epsilon for the tower and for the norm in front of the merger, which in transformers is the text's.
    eps = text.metadata["llama.attention.layer_norm_rms_epsilon"]
    if merged and np.float32(eps) != np.float32(EPS):  # type: ignore[arg-type]
        raise ConversionError(where, "text_config.rms_norm_eps", f"{eps} is not supported, expected the tower's {EPS}")
    if c["hidden_act"] not in ACTIVATIONS:
        raise ConversionError(where, "vision_config.hidden_act", f"{c['hidden_act']!r} is not supported")
    return c


def _fixed(config: Config, c: Config, processor: Config, merged: bool) -> Iterator[tuple[str, Any, Any]]:
    """Yield what a file cannot say otherwise: a setting, its value, and the one that it must have."""
    yield "vision_feature_layer", config.get("vision_feature_layer", -1 if merged else -2), -1
    if not merged:
        yield "vision_feature_select_strategy", config.get("vision_feature_select_strategy", "default"), "full"
    yield "projector_hidden_act", config.get("projector_hidden_act", "gelu"), "gelu"
    rope = {"rope_theta": c.get("rope_theta", 1e4), **(c.get("rope_parameters") or {})}
    yield "vision_config.rope_parameters", rope["rope_theta"], 1e4
    longest = (processor.get("size") or {}).get("longest_edge", c["image_size"])
    yield "size.longest_edge", longest, c["image_size"]


def _metadata(c: Config, processor: Config, text: TextShape) -> Metadata:
    v = "clip.vision."
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "pixtral",
        ACTIVATIONS[c["hidden_act"]]: True,
        v + "image_size": c["image_size"],
        v + "patch_size": c["patch_size"],
        v + "embedding_length": c["hidden_size"],
        v + "feed_forward_length": c["intermediate_size"],
        v + "block_count": c["num_hidden_layers"],
        v + "projection_dim": text.width,
        v + "attention.head_count": c["num_attention_heads"],
        v + "attention.layer_norm_epsilon": EPS,
        v + "image_mean": [float(x) for x in processor.get("image_mean") or CLIP_MEAN],
        v + "image_std": [float(x) for x in processor.get("image_std") or CLIP_STD],
        **({v + "spatial_merge_size": c["merge"]} if c["merge"] else {}),
    }


def _tensors(source: Source, c: Config, text: TextShape) -> dict[str, StoredTensor]:
    D, P, T = c["hidden_size"], c["patch_size"], text.width
    tower, projector = "vision_tower", "multi_modal_projector"
    tensors = {
        "v.patch_embd.weight": source.take(f"{tower}.patch_conv.weight", (D, 3, P, P)).as_kind("F32"),
        "v.pre_ln.weight": source.take(f"{tower}.ln_pre.weight", (D,)),
    }
    for part, to, columns in (("linear_1", "mm.1", D), ("linear_2", "mm.2", T)):
        tensors[f"{to}.weight"] = source.take(f"{projector}.{part}.weight", (T, columns))
        if c["bias"]:
            tensors[f"{to}.bias"] = source.take(f"{projector}.{part}.bias", (T,))
    if c["merge"]:
        squares = source.take(f"{projector}.patch_merger.merging_layer.weight", (D, c["merge"] ** 2 * D))
        tensors["mm.input_norm.weight"] = source.take(f"{projector}.norm.weight", (D,))
        tensors["mm.patch_merger.weight"] = squares
    for i in range(c["num_hidden_layers"]):
        tensors |= _block(source, f"{tower}.transformer.layers.{i}", f"v.blk.{i}", c)
    return tensors


def _block(source: Source, name: str, to: str, c: Config) -> dict[str, StoredTensor]:
    D, F, turned = c["hidden_size"], c["intermediate_size"], adjacent_pairs(c["num_attention_heads"])
    parts = {  # transformers' name: GGUF's, shape, how rows are reordered
        "attention_norm": ("ln1", (D,), None),
        "ffn_norm": ("ln2", (D,), None),
        "attention.q_proj": ("attn_q", (D, D), turned),
        "attention.k_proj": ("attn_k", (D, D), turned),
        "attention.v_proj": ("attn_v", (D, D), None),
        "attention.o_proj": ("attn_out", (D, D), None),
        "feed_forward.gate_proj": ("ffn_gate", (F, D), None),
        "feed_forward.up_proj": ("ffn_up", (F, D), None),
        "feed_forward.down_proj": ("ffn_down", (D, F), None),
    }
    return {
        f"{to}.{gguf}.weight": source.take(f"{name}.{part}.weight", shape, change)
        for part, (gguf, shape, change) in parts.items()
    }
