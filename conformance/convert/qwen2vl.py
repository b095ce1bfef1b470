"""Convert a Hugging Face Qwen2-VL or Qwen2.5-VL to the metadata and tensors of a GGUF pair.

Rows of Q and K stay in their order; the kernel of two frames becomes two kernels; q, k and v of the tower are taken
apart (llama.cpp b11549, conversion/qwenvl.py). A config may leave out any value that equals the default of its class,
so the defaults of transformers 5.24's Qwen2VLConfig and Qwen2_5_VLConfig are repeated.
D width, dh head size, F MLP width, V vocabulary, P patch.
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from ..pairs.pairs import CLIP_MEAN, CLIP_STD
from ..pairs.writing import Metadata, StoredTensor
from .hf_config import ConversionError
from .hf_weights import Source

KINDS = ("qwen2_vl", "qwen2_5_vl")
TEXT = {
    "vocab_size": 152064,
    "hidden_size": 8192,
    "intermediate_size": 29568,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "max_position_embeddings": 32768,
    "rms_norm_eps": 1e-5,
    "rope_theta": 1e6,
    "hidden_act": "silu",
    "use_sliding_window": False,
}
VISION = {"depth": 32, "num_heads": 16, "patch_size": 14, "spatial_merge_size": 2, "temporal_patch_size": 2}
VISION_2 = {**VISION, "embed_dim": 1280, "mlp_ratio": 4, "hidden_act": "quick_gelu"}
VISION_25 = {
    **VISION, "hidden_size": 3584, "intermediate_size": 3420, "window_size": 112, "hidden_act": "silu",
    "fullatt_block_indexes": [7, 15, 23, 31],
}  # fmt: skip
FIXED = {"hidden_act": "silu", "use_sliding_window": False}  # of the decoder: what a file cannot say otherwise
ROPES = {
    "qwen2vl": ("default", "mrope"),
    "qwen2": ("default", "dynamic"),  # the second changes nothing up to max_position_embeddings
}
IMAGE_SIZE = 560  # which no one uses, and llama.cpp asks for


def convert_qwen(
    source: Source, config: Mapping[str, Any], processor: Mapping[str, Any], n_kept: int
) -> tuple[tuple[Metadata, dict[str, StoredTensor]], tuple[Metadata, dict[str, StoredTensor]]]:
    """Return metadata and tensors of the text file, with the first `n_kept` rows of the vocabulary, and of the mmproj.
    Raises ConversionError."""
    text, gated = text_settings(source.where, config), config["model_type"] == "qwen2_5_vl"
    vision = _vision_settings(source.where, config, gated)
    parts = (
        (text_metadata(source.where, text, "qwen2vl"), text_tensors(source, text, n_kept)),
        (_vision_metadata(source.where, vision, text, processor), _vision_tensors(source, vision, text)),
    )
    source.finish(())
    return parts


def n_vocab(where: str, config: Mapping[str, Any]) -> int:
    """Return the number of embeddings."""
    return int({**TEXT, **_given(config)}["vocab_size"])


def _given(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the decoder's settings: in 5.x a part of the config, in 4.x beside the tower's."""
    return dict(config.get("text_config") or config)


def text_settings(where: str, config: Mapping[str, Any], defaults: Mapping[str, Any] = TEXT) -> dict[str, Any]:
    """Return a decoder's settings. Raises ConversionError for what no file can say."""
    c = {**defaults, **_given(config)}
    for key, want in FIXED.items():
        if c[key] != want:
            raise ConversionError(where, key, f"{c[key]!r} is not supported, expected {want!r}")
    c["tied"] = bool(c.get("tie_word_embeddings", config.get("tie_word_embeddings", False)))
    c["head_dim"] = c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"]
    return c


def text_metadata(where: str, c: Mapping[str, Any], arch: str) -> Metadata:
    """Return the keys of a decoder of arch `qwen2vl`, or `qwen2`. Raises ConversionError."""
    rope = {"rope_theta": c["rope_theta"], **(c.get("rope_scaling") or {}), **(c.get("rope_parameters") or {})}
    if rope.get("rope_type", rope.get("type", "default")) not in ROPES[arch]:
        raise ConversionError(where, "rope_parameters", f"{rope!r} is not supported, expected rope_type default")
    if arch == "qwen2vl" and "mrope_section" not in rope:
        raise ConversionError(where, "rope_parameters.mrope_section", "missing")
    sections = {f"{arch}.rope.dimension_sections": [*(int(n) for n in rope.get("mrope_section", ())), 0]}
    return {
        "general.architecture": arch,
        f"{arch}.context_length": c["max_position_embeddings"],
        f"{arch}.embedding_length": c["hidden_size"],
        f"{arch}.block_count": c["num_hidden_layers"],
        f"{arch}.feed_forward_length": c["intermediate_size"],
        f"{arch}.attention.head_count": c["num_attention_heads"],
        f"{arch}.attention.head_count_kv": c["num_key_value_heads"],
        f"{arch}.attention.layer_norm_rms_epsilon": float(c["rms_norm_eps"]),
        f"{arch}.rope.freq_base": float(rope["rope_theta"]),
        **(sections if arch == "qwen2vl" else {}),
    }


def text_tensors(source: Source, c: Mapping[str, Any], n_kept: int) -> dict[str, StoredTensor]:
    """Return the decoder's tensors, with the first `n_kept` rows of the vocabulary."""
    D, V, F, name = c["hidden_size"], c["vocab_size"], c["intermediate_size"], "language_model"
    Q, KV = c["num_attention_heads"] * c["head_dim"], c["num_key_value_heads"] * c["head_dim"]
    tensors = {
        "token_embd.weight": source.take_first(n_kept, f"{name}.embed_tokens.weight", (V, D)),
        "output_norm.weight": source.take(f"{name}.norm.weight", (D,)),
    }
    if c["tied"]:
        source.drop("lm_head.weight")
    else:
        tensors["output.weight"] = source.take_first(n_kept, "lm_head.weight", (V, D))
    parts = {
        "input_layernorm.weight": ("attn_norm.weight", (D,)),
        "self_attn.q_proj.weight": ("attn_q.weight", (Q, D)),
        "self_attn.q_proj.bias": ("attn_q.bias", (Q,)),
        "self_attn.k_proj.weight": ("attn_k.weight", (KV, D)),
        "self_attn.k_proj.bias": ("attn_k.bias", (KV,)),
        "self_attn.v_proj.weight": ("attn_v.weight", (KV, D)),
        "self_attn.v_proj.bias": ("attn_v.bias", (KV,)),
        "self_attn.o_proj.weight": ("attn_output.weight", (D, Q)),
        "post_attention_layernorm.weight": ("ffn_norm.weight", (D,)),
        "mlp.gate_proj.weight": ("ffn_gate.weight", (F, D)),
        "mlp.up_proj.weight": ("ffn_up.weight", (F, D)),
        "mlp.down_proj.weight": ("ffn_down.weight", (D, F)),
    }
    for i in range(c["num_hidden_layers"]):
        for part, (gguf, shape) in parts.items():
            tensors[f"blk.{i}.{gguf}"] = source.take(f"{name}.layers.{i}.{part}", shape)
    return tensors


def _vision_settings(where: str, config: Mapping[str, Any], gated: bool) -> dict[str, Any]:
    """Return the tower's settings, `width` and `mlp_width` among them, whatever its class calls them."""
    c: dict[str, Any] = {**(VISION_25 if gated else VISION_2), **(config.get("vision_config") or {})}
    fixed = {key: (VISION_25 if gated else VISION_2)[key] for key in ("hidden_act", "spatial_merge_size")}
    for key, want in {**fixed, "temporal_patch_size": 2, **({"window_size": 112} if gated else {})}.items():
        if c[key] != want:
            raise ConversionError(where, f"vision_config.{key}", f"{c[key]!r} is not supported, expected {want!r}")
    c["gated"], c["width"] = gated, c["hidden_size"] if gated else c["embed_dim"]
    c["mlp_width"] = c["intermediate_size"] if gated else int(c["embed_dim"] * c["mlp_ratio"])
    if gated:
        whole, n = list(c["fullatt_block_indexes"]), c["depth"]
        c["pattern"] = whole[0] + 1 if whole else n + 1
        if whole != [i for i in range(n) if (i + 1) % c["pattern"] == 0]:
            raise ConversionError(where, "vision_config.fullatt_block_indexes", f"{whole} has no period")
    return c


def _vision_metadata(
    where: str, c: Mapping[str, Any], text: Mapping[str, Any], processor: Mapping[str, Any]
) -> Metadata:
    v = "clip.vision."
    kind = {
        "clip.projector_type": "qwen2.5vl_merger",
        "clip.use_silu": True,
        v + "n_wa_pattern": c["pattern"],
    } if c["gated"] else {"clip.projector_type": "qwen2vl_merger"}  # fmt: skip
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        **kind,
        v + "image_size": IMAGE_SIZE - IMAGE_SIZE % c["patch_size"],
        v + "patch_size": c["patch_size"],
        v + "embedding_length": c["width"],
        v + "feed_forward_length": c["mlp_width"],
        v + "block_count": c["depth"],
        v + "projection_dim": text["hidden_size"],
        v + "attention.head_count": c["num_heads"],
        v + "attention.layer_norm_epsilon": 1e-6,  # which transformers does not read from anywhere
        v + "image_mean": [float(x) for x in processor.get("image_mean") or CLIP_MEAN],
        v + "image_std": [float(x) for x in processor.get("image_std") or CLIP_STD],
    }


def _vision_tensors(source: Source, c: Mapping[str, Any], text: Mapping[str, Any]) -> dict[str, StoredTensor]:
    D, P, M = c["width"], c["patch_size"], 4 * c["width"]
    kernel = source.take("visual.patch_embed.proj.weight", (D, 3, 2, P, P))
    tensors = {
        "v.patch_embd.weight": _changed(kernel, (D, 3, P, P), lambda x: x[:, :, 0]),
        "v.patch_embd.weight.1": _changed(kernel, (D, 3, P, P), lambda x: x[:, :, 1]),
        "v.post_ln.weight": source.take("visual.merger.ln_q.weight", (D,)),
        "mm.0.weight": source.take("visual.merger.mlp.0.weight", (M, M)),
        "mm.0.bias": source.take("visual.merger.mlp.0.bias", (M,)),
        "mm.2.weight": source.take("visual.merger.mlp.2.weight", (text["hidden_size"], M)),
        "mm.2.bias": source.take("visual.merger.mlp.2.bias", (text["hidden_size"],)),
    }
    if not c["gated"]:
        tensors["v.post_ln.bias"] = source.take("visual.merger.ln_q.bias", (D,))
    for i in range(c["depth"]):
        tensors |= _vision_block(source, f"visual.blocks.{i}", f"v.blk.{i}", c)
    return tensors


def _vision_block(source: Source, name: str, to: str, c: Mapping[str, Any]) -> dict[str, StoredTensor]:
    D, F = c["width"], c["mlp_width"]
    matrices = {"attn.proj": ("attn_out", D, D)}
    if c["gated"]:
        matrices |= {f"mlp.{part}_proj": (f"ffn_{part}", F, D) for part in ("gate", "up")}
        matrices["mlp.down_proj"] = ("ffn_down", D, F)
    else:
        matrices |= {"mlp.fc1": ("ffn_up", F, D), "mlp.fc2": ("ffn_down", D, F)}
    tensors = {}
    for part, (gguf, rows, columns) in matrices.items():
        tensors[f"{to}.{gguf}.weight"] = source.take(f"{name}.{part}.weight", (rows, columns))
        tensors[f"{to}.{gguf}.bias"] = source.take(f"{name}.{part}.bias", (rows,))
    for ours, theirs in (("ln1", "norm1"), ("ln2", "norm2")):
        for what in ("weight",) if c["gated"] else ("weight", "bias"):
            tensors[f"{to}.{ours}.{what}"] = source.take(f"{name}.{theirs}.{what}", (D,))
    for what, shape in (("weight", (3 * D, D)), ("bias", (3 * D,))):
        joined = source.take(f"{name}.attn.qkv.{what}", shape)
        for at, part in enumerate("qkv"):
            tensors[f"{to}.attn_{part}.{what}"] = _changed(joined, (D, *shape[1:]), _third(at, D))
    return tensors


def _third(at: int, D: int) -> Callable[[np.ndarray], np.ndarray]:
    """Return what takes q (0), k (1) or v (2) of the three."""
    return lambda x: x[at * D : (at + 1) * D]


def _changed(tensor: StoredTensor, shape: tuple[int, ...], change: Callable[[np.ndarray], np.ndarray]) -> StoredTensor:
    return StoredTensor(shape, lambda: np.ascontiguousarray(change(tensor.load())))
