"""Read a Hugging Face LLaVA `config.json` into GGUF metadata and the sizes that the weights must have.

A config may leave out any value that equals the default of its class, so the defaults of transformers 5.24's
LlamaConfig, MistralConfig, CLIPVisionConfig and LlavaConfig are repeated here. A setting that a GGUF pair cannot
express is an error by name.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from llava_ref.errors import LlavaError

from ..pairs.pairs import CLIP_MEAN, CLIP_STD
from ..pairs.writing import Metadata

LLAMA = {
    "vocab_size": 32000,
    "hidden_size": 4096,
    "intermediate_size": 11008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
}
MISTRAL = {
    **LLAMA,
    "intermediate_size": 14336,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "sliding_window": 4096,
}
MLLAMA = {
    **LLAMA,
    "vocab_size": 128256,
    "intermediate_size": 14336,
    "num_hidden_layers": 40,
    "num_key_value_heads": 8,
    "max_position_embeddings": 4096 * 32,
    "rms_norm_eps": 1e-5,
    "rope_theta": 500000.0,
}
TEXTS = {"llama": LLAMA, "mistral": MISTRAL, "mllama_text_model": MLLAMA}
CLIP = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}
PINPOINTS = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]  # LlavaNextConfig's


class ConversionError(LlavaError):
    """A Hugging Face folder that cannot become a GGUF pair."""


@dataclass(frozen=True, slots=True)
class TextShape:
    """The sizes of the text weights, and the metadata that states them."""

    width: int
    n_layer: int
    n_head: int
    n_head_kv: int
    head_size: int
    mlp_width: int
    n_vocab: int
    tied: bool
    attention_bias: bool
    mlp_bias: bool
    rope_divisors: np.ndarray | None  # (head_size / 2,) float32, Llama 3's scaling
    metadata: Metadata


@dataclass(frozen=True, slots=True)
class VisionShape:
    """The sizes of the tower's and projector's weights, and the metadata that states them."""

    width: int
    n_used: int  # blocks up to the feature layer
    n_block: int
    mlp_width: int
    patch_size: int
    n_rows: int  # patches and the class token
    text_width: int
    projector_bias: bool
    tiled: bool  # LLaVA-1.6
    metadata: Metadata


def read_text(where: str, config: Mapping[str, Any]) -> TextShape:
    """Read the decoder's sizes from a LLaVA config. Raises ConversionError."""
    given = dict(config.get("text_config") or {})
    kind = given.get("model_type", "llama")
    defaults = TEXTS.get(kind)
    if defaults is None:
        raise ConversionError(where, "text_config.model_type", f"{kind!r} is not supported, expected llama or mistral")
    c: dict[str, Any] = {**defaults, **given}
    if c["hidden_act"] != "silu":
        raise ConversionError(where, "text_config.hidden_act", f"{c['hidden_act']!r} is not supported, expected 'silu'")
    n_head = c["num_attention_heads"]
    head_size = c.get("head_dim") or c["hidden_size"] // n_head
    n_head_kv = c.get("num_key_value_heads") or n_head
    rope, divisors = _rope(where, c, head_size)
    return TextShape(
        width=c["hidden_size"],
        n_layer=c["num_hidden_layers"],
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_size=head_size,
        mlp_width=c["intermediate_size"],
        n_vocab=c["vocab_size"],
        tied=bool(given.get("tie_word_embeddings", config.get("tie_word_embeddings", False))),
        attention_bias=bool(c.get("attention_bias")),
        mlp_bias=bool(c.get("mlp_bias")),
        rope_divisors=divisors,
        metadata={**_text_metadata(c, n_head_kv, head_size), **rope},
    )


def _text_metadata(c: Mapping[str, Any], n_head_kv: int, head_size: int) -> Metadata:
    return {
        "general.architecture": "llama",
        "llama.block_count": c["num_hidden_layers"],
        "llama.context_length": c["max_position_embeddings"],
        "llama.embedding_length": c["hidden_size"],
        "llama.feed_forward_length": c["intermediate_size"],
        "llama.attention.head_count": c["num_attention_heads"],
        "llama.attention.head_count_kv": n_head_kv,
        "llama.attention.key_length": head_size,
        "llama.attention.value_length": head_size,
        "llama.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        **({"llama.attention.sliding_window": c["sliding_window"]} if c.get("sliding_window") else {}),
    }


def _rope(where: str, c: Mapping[str, Any], head_size: int) -> tuple[dict[str, int | float | str], np.ndarray | None]:
    """Return the rope keys, and the divisors of Llama 3's scaling.  `rope_parameters` is 5.x, `rope_scaling` is 4.x."""
    s: dict[str, Any] = {**(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    base = float(s.get("rope_theta", c["rope_theta"]))
    keys: dict[str, int | float | str] = {"llama.rope.dimension_count": head_size, "llama.rope.freq_base": base}
    kind, factor = s.get("rope_type", s.get("type", "default")), float(s.get("factor", 1.0))
    original = s.get("original_max_position_embeddings") or c["max_position_embeddings"]
    match kind:
        case "default":
            return keys, None
        case "llama3":
            return keys, _llama3_divisors(
                base, head_size, factor, original, s["low_freq_factor"], s["high_freq_factor"]
            )
        case "linear":
            return keys | {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": factor}, None
        case "yarn" if not s.get("mscale") and s.get("truncate", True):
            length = s.get("attention_factor") or 1 + 0.1 * math.log(factor)
            return keys | {
                "llama.rope.scaling.type": kind,
                "llama.rope.scaling.factor": factor,
                "llama.rope.scaling.original_context_length": original,
                "llama.rope.scaling.attn_factor": length / (1 + 0.1 * math.log(factor)),  # ggml multiplies by this
                "llama.rope.scaling.yarn_beta_fast": float(s.get("beta_fast") or 32),
                "llama.rope.scaling.yarn_beta_slow": float(s.get("beta_slow") or 1),
            }, None
    raise ConversionError(where, "text_config.rope_parameters", f"{s!r} is not supported")


def _llama3_divisors(base: float, size: int, factor: float, original: float, low: float, high: float) -> np.ndarray:
    """Return the divisor of each pair's frequency (Llama 3.1's apply_scaling).  -> (size / 2,) float32"""
    turns = original * base ** (-np.arange(0, size, 2) / size) / (2 * math.pi)  # over the original context
    smooth = np.clip((turns - low) / (high - low), 0, 1)
    return (1 / ((1 - smooth) / factor + smooth)).astype(np.float32)


def read_vision(
    where: str, config: Mapping[str, Any], text_width: int, processor: Mapping[str, Any] | None = None
) -> VisionShape:
    """Read the tower's and projector's sizes from a LLaVA config; mean and deviation from preprocessor_config.json."""
    c: dict[str, Any] = {**CLIP, **(config.get("vision_config") or {})}
    _check_vision(where, config, c)
    n_block = c["num_hidden_layers"]
    used = _feature_layer(where, config.get("vision_feature_layer", -2), n_block)
    processor, v = processor or {}, "clip.vision."
    tiles = _tiles(where, config, processor) if config.get("model_type") == "llava_next" else {}
    return VisionShape(
        width=c["hidden_size"],
        n_used=used,
        n_block=n_block,
        mlp_width=c["intermediate_size"],
        patch_size=c["patch_size"],
        n_rows=(c["image_size"] // c["patch_size"]) ** 2 + 1,
        text_width=text_width,
        projector_bias=bool(config.get("multimodal_projector_bias", True)),
        tiled=bool(tiles),
        metadata={
            **tiles,
            "general.architecture": "clip",
            "clip.has_vision_encoder": True,
            "clip.projector_type": "mlp",
            v + "image_size": c["image_size"],
            v + "patch_size": c["patch_size"],
            v + "embedding_length": c["hidden_size"],
            v + "feed_forward_length": c["intermediate_size"],
            v + "block_count": used,
            v + "feature_layer": [used],
            v + "projection_dim": text_width,
            v + "attention.head_count": c["num_attention_heads"],
            v + "attention.layer_norm_epsilon": float(c["layer_norm_eps"]),
            v + "image_mean": [float(x) for x in processor.get("image_mean", CLIP_MEAN)],
            v + "image_std": [float(x) for x in processor.get("image_std", CLIP_STD)],
            **({"clip.use_gelu": True} if c["hidden_act"] == "gelu" else {}),
        },
    )


def _tiles(where: str, config: Mapping[str, Any], processor: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keys of LLaVA-1.6. transformers writes a size as height and width, a file as width and height."""
    sizes = config.get("image_grid_pinpoints") or PINPOINTS
    if (found := processor.get("image_grid_pinpoints", sizes)) != sizes:
        raise ConversionError(where, "image_grid_pinpoints", f"{found} for the processor, {sizes} for the model")
    return {
        "clip.vision.image_grid_pinpoints": [side for height, width in sizes for side in (width, height)],
        "clip.vision.image_aspect_ratio": "anyres",
        "clip.vision.mm_patch_merge_type": "spatial_unpad",
    }


def _check_vision(where: str, config: Mapping[str, Any], c: Mapping[str, Any]) -> None:
    if (kind := c.get("model_type", "clip_vision_model")) != "clip_vision_model":
        raise ConversionError(where, "vision_config.model_type", f"{kind!r} is not supported")
    if c["hidden_act"] not in ("quick_gelu", "gelu"):
        raise ConversionError(where, "vision_config.hidden_act", f"{c['hidden_act']!r} is not supported")
    for key, want in (("vision_feature_select_strategy", "default"), ("projector_hidden_act", "gelu")):
        if (found := config.get(key, want)) != want:
            raise ConversionError(where, key, f"{found!r} is not supported, expected {want!r}")


def _feature_layer(where: str, layer: Any, n_block: int) -> int:
    """Return the hidden state that the projector reads, as GGUF counts: 0 is the first block's input; so many run."""
    if not isinstance(layer, int):
        raise ConversionError(where, "vision_feature_layer", f"{layer!r} is not supported, expected one layer")
    index = layer if layer >= 0 else n_block + 1 + layer
    if not 1 <= index <= n_block:
        raise ConversionError(where, "vision_feature_layer", f"{layer} is not a hidden state of {n_block} blocks")
    return index
