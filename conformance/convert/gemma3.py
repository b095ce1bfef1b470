"""Convert a Hugging Face Gemma 3 to the metadata and tensors of a GGUF pair.

Norm weights get the +1 that transformers adds when it runs; rows of Q and K stay in their order; the projection is
stored as it is, in float16 (llama.cpp b11549, conversion/gemma.py). A config may leave out any value that equals the
default of its class, so the defaults of transformers 5.24's Gemma3TextConfig and SiglipVisionConfig are repeated.
D width, dh head size, F MLP width, V vocabulary, N patches, P patch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ..pairs.writing import Metadata, StoredTensor
from .hf_config import ConversionError
from .hf_weights import Source, vision_block

TEXT = {
    "vocab_size": 262208,
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "num_hidden_layers": 26,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "max_position_embeddings": 131072,
    "rms_norm_eps": 1e-6,
    "query_pre_attn_scalar": 256,
    "sliding_window": 4096,
    "rope_theta": 1e6,
    "rope_local_base_freq": 1e4,
}
SIGLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 16,
    "layer_norm_eps": 1e-6,
}
FIXED = {  # settings of the text model that a GGUF file cannot express
    "hidden_activation": "gelu_pytorch_tanh",
    "attention_bias": False,
    "use_bidirectional_attention": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
}
PERIOD, BLOCKS_27B = 6, 62  # llama.cpp: every 6th layer is full; with 62 blocks the attention scale is width / heads
HALF = [0.5, 0.5, 0.5]
UNUSED = ("vision_tower.head.", "vision_tower.embeddings.position_ids")  # SigLIP's pooling head


def convert_gemma3(
    source: Source, config: Mapping[str, Any], processor: Mapping[str, Any], n_kept: int
) -> tuple[tuple[Metadata, dict[str, StoredTensor]], tuple[Metadata, dict[str, StoredTensor]]]:
    """Return metadata and tensors of the text file, with the first `n_kept` rows of the vocabulary, and of the mmproj.
    Raises ConversionError."""
    text = _text_settings(source.where, config)
    vision: dict[str, Any] = {**SIGLIP, **(config.get("vision_config") or {})}
    _check_vision(source.where, vision, processor)
    parts = (
        (_text_metadata(source.where, text), _text_tensors(source, text, n_kept)),
        (_vision_metadata(source.where, config, vision, processor), _vision_tensors(source, vision, text)),
    )
    source.finish(UNUSED)
    return parts


def n_vocab(where: str, config: Mapping[str, Any]) -> int:
    """Return the number of embeddings."""
    return int({**TEXT, **(config.get("text_config") or {})}["vocab_size"])


def _text_settings(where: str, config: Mapping[str, Any]) -> dict[str, Any]:
    given = dict(config.get("text_config") or {})
    if (kind := given.get("model_type", "gemma3_text")) != "gemma3_text":
        raise ConversionError(where, "text_config.model_type", f"{kind!r} is not supported, expected gemma3_text")
    for key, want in FIXED.items():
        if (found := given.get(key, want)) != want:
            raise ConversionError(where, f"text_config.{key}", f"{found!r} is not supported, expected {want!r}")
    c = {**TEXT, **given}
    scale = c["hidden_size"] // c["num_attention_heads"] if c["num_hidden_layers"] == BLOCKS_27B else c["head_dim"]
    if c["query_pre_attn_scalar"] != scale:
        problem = f"{c['query_pre_attn_scalar']} is not supported, expected {scale}"
        raise ConversionError(where, "text_config.query_pre_attn_scalar", problem)
    c["tied"] = bool(given.get("tie_word_embeddings", config.get("tie_word_embeddings", True)))
    return c


def _text_metadata(where: str, c: Mapping[str, Any]) -> Metadata:
    period, windows = _pattern(where, c)
    optional = {
        "gemma3.attention.sliding_window": c["sliding_window"] if windows else None,
        "gemma3.attention.sliding_window_pattern": period if windows and period != PERIOD else None,
    }
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": c["max_position_embeddings"],
        "gemma3.embedding_length": c["hidden_size"],
        "gemma3.block_count": c["num_hidden_layers"],
        "gemma3.feed_forward_length": c["intermediate_size"],
        "gemma3.attention.head_count": c["num_attention_heads"],
        "gemma3.attention.head_count_kv": c["num_key_value_heads"],
        "gemma3.attention.key_length": c["head_dim"],
        "gemma3.attention.value_length": c["head_dim"],
        "gemma3.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        **_rope(where, c),
        **{key: value for key, value in optional.items() if value is not None},
    }


def _pattern(where: str, c: Mapping[str, Any]) -> tuple[int, bool]:
    """Return the period of the full layers, and whether there are window layers."""
    n, stated = c["num_hidden_layers"], c.get("sliding_window_pattern", c.get("_sliding_window_pattern", PERIOD))
    layers = c.get("layer_types") or _layers(stated, n)
    for period in (PERIOD, *range(1, n + 2)):
        if layers == _layers(period, n):
            return period, "sliding_attention" in layers
    raise ConversionError(where, "text_config.layer_types", "has no period, expected every n-th layer full")


def _layers(period: int, n: int) -> list[str]:
    return ["sliding_attention" if (i + 1) % period else "full_attention" for i in range(n)]


def _rope(where: str, c: Mapping[str, Any]) -> dict[str, float | str]:
    """Return the rope keys.  `rope_parameters` is 5.x; `rope_theta`, `rope_local_base_freq`, `rope_scaling` are 4.x."""
    given = c.get("rope_parameters") or {}
    full = {"rope_theta": c["rope_theta"], **(c.get("rope_scaling") or {}), **(given.get("full_attention") or {})}
    local = {"rope_theta": c["rope_local_base_freq"], **(given.get("sliding_attention") or {})}
    keys: dict[str, float | str] = {
        "gemma3.rope.freq_base": float(full["rope_theta"]),
        "gemma3.rope.freq_base_swa": float(local["rope_theta"]),
    }
    match local.get("rope_type", "default"), full.get("rope_type", full.get("type", "default")):
        case "default", "default":
            return keys
        case "default", "linear":
            return keys | {
                "gemma3.rope.scaling.type": "linear",
                "gemma3.rope.scaling.factor": float(full["factor"]),
            }
    raise ConversionError(where, "text_config.rope_parameters", f"{given or full!r} is not supported")


def _text_tensors(source: Source, c: Mapping[str, Any], n_kept: int) -> dict[str, StoredTensor]:
    D, V, name = c["hidden_size"], c["vocab_size"], "language_model"
    tensors = {
        "token_embd.weight": source.take_first(n_kept, f"{name}.embed_tokens.weight", (V, D)),
        "output_norm.weight": source.take(f"{name}.norm.weight", (D,), _plus_one),
    }
    if c["tied"]:
        source.drop("lm_head.weight")
    else:
        tensors["output.weight"] = source.take_first(n_kept, "lm_head.weight", (V, D))
    for i in range(c["num_hidden_layers"]):
        tensors |= _text_block(source, f"{name}.layers.{i}", f"blk.{i}", c)
    return tensors


def _text_block(source: Source, name: str, to: str, c: Mapping[str, Any]) -> dict[str, StoredTensor]:
    D, F, dh = c["hidden_size"], c["intermediate_size"], c["head_dim"]
    Q, KV = c["num_attention_heads"] * dh, c["num_key_value_heads"] * dh
    norms = {
        "input_layernorm": ("attn_norm", D),
        "post_attention_layernorm": ("post_attention_norm", D),
        "pre_feedforward_layernorm": ("ffn_norm", D),
        "post_feedforward_layernorm": ("post_ffw_norm", D),
        "self_attn.q_norm": ("attn_q_norm", dh),
        "self_attn.k_norm": ("attn_k_norm", dh),
    }
    matrices = {
        "self_attn.q_proj": ("attn_q", Q, D),
        "self_attn.k_proj": ("attn_k", KV, D),
        "self_attn.v_proj": ("attn_v", KV, D),
        "self_attn.o_proj": ("attn_output", D, Q),
        "mlp.gate_proj": ("ffn_gate", F, D),
        "mlp.up_proj": ("ffn_up", F, D),
        "mlp.down_proj": ("ffn_down", D, F),
    }
    tensors = {
        f"{to}.{gguf}.weight": source.take(f"{name}.{part}.weight", (size,), _plus_one)
        for part, (gguf, size) in norms.items()
    }
    return tensors | {
        f"{to}.{gguf}.weight": source.take(f"{name}.{part}.weight", (rows, columns))
        for part, (gguf, rows, columns) in matrices.items()
    }


def _plus_one(gains: np.ndarray) -> np.ndarray:
    one_more: np.ndarray = gains + np.float32(1)
    return one_more


def _check_vision(where: str, c: Mapping[str, Any], processor: Mapping[str, Any]) -> None:
    for key, want in (("model_type", "siglip_vision_model"), ("hidden_act", "gelu_pytorch_tanh")):
        if (found := c.get(key, want)) != want:
            raise ConversionError(where, f"vision_config.{key}", f"{found!r} is not supported, expected {want!r}")
    if processor.get("do_pan_and_scan"):
        raise ConversionError(where, "do_pan_and_scan", "true is not supported")


def _vision_metadata(
    where: str, config: Mapping[str, Any], c: Mapping[str, Any], processor: Mapping[str, Any]
) -> Metadata:
    v, grid, n_rows = "clip.vision.", c["image_size"] // c["patch_size"], config.get("mm_tokens_per_image", 256)
    side = int(n_rows**0.5)
    if side * side != n_rows or grid % side:
        raise ConversionError(where, "mm_tokens_per_image", f"{n_rows} is no square that divides {grid} x {grid}")
    text_width = {**TEXT, **(config.get("text_config") or {})}["hidden_size"]
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        "clip.use_gelu": True,
        v + "image_size": c["image_size"],
        v + "patch_size": c["patch_size"],
        v + "embedding_length": c["hidden_size"],
        v + "feed_forward_length": c["intermediate_size"],
        v + "block_count": c["num_hidden_layers"],
        v + "projection_dim": text_width,
        v + "attention.head_count": c["num_attention_heads"],
        v + "attention.layer_norm_epsilon": float(c["layer_norm_eps"]),
        v + "image_mean": [float(x) for x in processor.get("image_mean") or HALF],
        v + "image_std": [float(x) for x in processor.get("image_std") or HALF],
        **({v + "projector.scale_factor": grid // side} if grid // side != 4 else {}),
    }


def _vision_tensors(source: Source, c: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, StoredTensor]:
    D, P, name, projector = c["hidden_size"], c["patch_size"], "vision_tower", "multi_modal_projector"
    kernel = source.take(f"{name}.embeddings.patch_embedding.weight", (D, 3, P, P))
    projection = source.take(f"{projector}.mm_input_projection_weight", (D, text["hidden_size"]))
    positions = (c["image_size"] // P) ** 2
    tensors = {
        "v.patch_embd.weight": kernel.as_kind("F32"),
        "v.patch_embd.bias": source.take(f"{name}.embeddings.patch_embedding.bias", (D,)),
        "v.position_embd.weight": source.take(f"{name}.embeddings.position_embedding.weight", (positions, D)),
        "v.post_ln.weight": source.take(f"{name}.post_layernorm.weight", (D,)),
        "v.post_ln.bias": source.take(f"{name}.post_layernorm.bias", (D,)),
        "mm.soft_emb_norm.weight": source.take(f"{projector}.mm_soft_emb_norm.weight", (D,), _plus_one),
        "mm.input_projection.weight": projection.as_kind("F16"),
    }
    for i in range(c["num_hidden_layers"]):
        block = f"{name}.encoder.layers.{i}"
        tensors |= vision_block(source, block, f"v.blk.{i}", D, c["intermediate_size"])
    return tensors
