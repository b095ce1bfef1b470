"""Convert a Hugging Face SmolVLM, SmolVLM2 or Idefics3 to the metadata and tensors of a GGUF pair.

The decoder is llama's, so `hf_config` and `hf_weights` convert it; the tower is SigLIP (llama.cpp b11549,
conversion/smolvlm.py). A config may leave out any value that equals the default of its class, so the defaults of
transformers 5.24's Idefics3VisionConfig, which are SmolVLMVisionConfig's, are repeated.
D width, F MLP width, P patch.
"""

from collections.abc import Mapping
from typing import Any

from ..pairs.writing import Metadata, StoredTensor
from .hf_config import ConversionError, read_text
from .hf_weights import Source, text_tensors, vision_block

SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 16,
    "image_size": 224,
    "patch_size": 32,
    "hidden_act": "gelu_pytorch_tanh",
    "layer_norm_eps": 1e-6,
}
HALF, TILES = [0.5, 0.5, 0.5], 4  # of a processor that says nothing: mean and deviation, tiles along the longer side
SCALE = 2
KINDS = ("idefics3", "smolvlm")


def convert_idefics3(
    source: Source, config: Mapping[str, Any], processor: Mapping[str, Any], n_kept: int
) -> tuple[tuple[Metadata, dict[str, StoredTensor]], tuple[Metadata, dict[str, StoredTensor]]]:
    """Return metadata and tensors of the text file, with the first `n_kept` rows of the vocabulary, and of the mmproj.
    Raises ConversionError."""
    text = read_text(source.where, config)
    vision: dict[str, Any] = {**SIGLIP, **(config.get("vision_config") or {})}
    if vision["hidden_act"] != SIGLIP["hidden_act"]:
        raise ConversionError(source.where, "vision_config.hidden_act", f"{vision['hidden_act']!r} is not supported")
    scale = config.get("scale_factor", SCALE)
    parts = (
        (text.metadata, text_tensors(source, text, n_kept)),
        (
            _metadata(source.where, vision, processor, text.width, scale),
            _tensors(source, vision, text.width, scale),
        ),
    )
    source.finish(())
    return parts


def _metadata(where: str, c: Mapping[str, Any], processor: Mapping[str, Any], text_width: int, scale: int) -> Metadata:
    v, side = "clip.vision.", c["image_size"]
    if processor.get("do_image_splitting", True) is not True:
        raise ConversionError(where, "do_image_splitting", "false is not supported")
    if (tile := (processor.get("max_image_size") or {}).get("longest_edge", side)) != side:
        raise ConversionError(where, "max_image_size", f"{tile} for the processor, {side} for the model")
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "idefics3",
        "clip.use_gelu": True,
        v + "image_size": side,
        v + "preproc_image_size": (processor.get("size") or {}).get("longest_edge", TILES * side),
        v + "patch_size": c["patch_size"],
        v + "embedding_length": c["hidden_size"],
        v + "feed_forward_length": c["intermediate_size"],
        v + "block_count": c["num_hidden_layers"],
        v + "projection_dim": text_width,
        v + "projector.scale_factor": scale,
        v + "attention.head_count": c["num_attention_heads"],
        v + "attention.layer_norm_epsilon": float(c["layer_norm_eps"]),
        v + "image_mean": [float(x) for x in processor.get("image_mean") or HALF],
        v + "image_std": [float(x) for x in processor.get("image_std") or HALF],
    }


def _tensors(source: Source, c: Mapping[str, Any], text_width: int, scale: int) -> dict[str, StoredTensor]:
    D, P, name = c["hidden_size"], c["patch_size"], "vision_tower"
    kernel = source.take(f"{name}.embeddings.patch_embedding.weight", (D, 3, P, P))
    positions = (c["image_size"] // P) ** 2
    tensors = {
        "v.patch_embd.weight": kernel.as_kind("F32"),
        "v.patch_embd.bias": source.take(f"{name}.embeddings.patch_embedding.bias", (D,)),
        "v.position_embd.weight": source.take(f"{name}.embeddings.position_embedding.weight", (positions, D)),
        "v.post_ln.weight": source.take(f"{name}.post_layernorm.weight", (D,)),
        "v.post_ln.bias": source.take(f"{name}.post_layernorm.bias", (D,)),
        "mm.model.fc.weight": source.take("connector.modality_projection.proj.weight", (text_width, scale**2 * D)),
    }
    for i in range(c["num_hidden_layers"]):
        tensors |= vision_block(source, f"{name}.encoder.layers.{i}", f"v.blk.{i}", D, c["intermediate_size"])
    return tensors
