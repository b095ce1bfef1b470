"""Read the settings of a LLaVA pair, and of a SigLIP tower, into transformers' words, key by key.

No code of `llava_ref.models.config` is used, so an error there shows as a difference from transformers. Formulas
(YaRN's ramp and length, the scale of attention, how a picture becomes square) are transformers' own throughout.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from llava_ref.gguf.file import GGUFFile

from ..reference import ReferenceError

LARGE = 1 << 24


@dataclass(frozen=True, slots=True)
class TextSettings:
    """The decoder's config, and the settings that a config cannot express."""

    config: Mapping[str, Any]  # of LlamaConfig and MistralConfig
    window: int  # MistralConfig's sliding_window, 0: none
    scale: float  # of attention, 0: the model's own
    length: float  # by which the rotary module's own scaling is multiplied
    n_vocab: int


@dataclass(frozen=True, slots=True)
class VisionSettings:
    """The settings of the tower and of the picture processor."""

    config: Mapping[str, Any]  # of CLIPVisionConfig or SiglipVisionConfig
    n_stored: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    merge: int = 1  # the projector makes one row of so many patches each way
    sizes: tuple[tuple[int, int], ...] = ()  # LLaVA-1.6: widths and heights of the pictures that tiles are cut from
    longest: int = 0  # Idefics3: pixels of a picture's longer side before it fills whole tiles
    tiles: tuple[int, int] = (1, 1)  # InternVL: the least and the most tiles of a picture

    @property
    def image_size(self) -> int:
        return int(self.config["image_size"])

    @property
    def n_patches(self) -> int:
        return int((self.image_size // self.config["patch_size"]) ** 2)

    @property
    def n_rows(self) -> int:
        return int((self.image_size // self.config["patch_size"] // self.merge) ** 2)


def read_text(file: GGUFFile, arch: str = "llama") -> TextSettings:
    """Read the text file's keys. Raises GGUFError for a key that is missing or mistyped."""
    a, blocks = f"{arch}.attention.", file.integer(f"{arch}.block_count", 1, LARGE)
    width, n_head = file.integer(f"{arch}.embedding_length", 1, LARGE), whole(file, a + "head_count", None, blocks)
    rope = _rope(file, arch)
    config = {
        "hidden_size": width,
        "intermediate_size": whole(file, f"{arch}.feed_forward_length", None, blocks),
        "num_hidden_layers": blocks,
        "num_attention_heads": n_head,
        "num_key_value_heads": whole(file, a + "head_count_kv", n_head, blocks),
        "head_dim": whole(file, a + "key_length", width // n_head, blocks),
        "max_position_embeddings": file.integer(f"{arch}.context_length", 1, LARGE),
        "rms_norm_eps": file.number(a + "layer_norm_rms_epsilon", 0.0, 1.0, layers=blocks),
        "rope_parameters": {"rope_theta": file.number(f"{arch}.rope.freq_base", 0.0, 1e15, 1e4, layers=blocks)} | rope,
        "is_causal": file.boolean(a + "causal", True),
        "attn_implementation": "eager",
    }
    return TextSettings(
        config=config,
        window=whole(file, a + "sliding_window", 0, blocks),
        scale=file.number(a + "scale", 0.0, 1e9, 0.0, layers=blocks),
        length=file.number(f"{arch}.rope.scaling.attn_factor", 0.0, 1e9, 1.0),
        n_vocab=file.array_length("tokenizer.ggml.tokens"),
    )


def whole(file: GGUFFile, key: str, default: int | None, blocks: int) -> int:
    if default is None:
        return file.integer(key, 1, LARGE, layers=blocks)
    return file.integer(key, 0, LARGE, default, layers=blocks)


def _rope(file: GGUFFile, arch: str) -> dict[str, Any]:
    """Return `rope_parameters` without the base. Keys as llama.cpp's converter writes them (conversion/base.py)."""
    s = f"{arch}.rope.scaling."
    factor = file.number(s + "factor" if s + "factor" in file else f"{arch}.rope.scale_linear", 0.0, 1e9, 0.0)
    kind = file.string(s + "type", "linear")
    if kind == "none" or not factor:
        return {"rope_type": "default"}
    if kind not in ("linear", "yarn"):
        raise ReferenceError(file.path, s + "type", f"{kind!r}: no known way to transformers' rope_parameters")
    if kind == "linear":
        return {"rope_type": kind, "factor": factor}
    original = file.integer(s + "original_context_length", 1, LARGE, file.integer(f"{arch}.context_length", 1, LARGE))
    given = {
        "attention_factor": file.number(s + "yarn_attn_factor", 0.0, 1e9, 0.0),
        "beta_fast": file.number(s + "yarn_beta_fast", 0.0, 1e9, 0.0),
        "beta_slow": file.number(s + "yarn_beta_slow", 0.0, 1e9, 0.0),
    }
    return {
        "rope_type": kind,
        "factor": factor,
        "original_max_position_embeddings": original,
        **{name: value for name, value in given.items() if value},
    }


def read_vision(file: GGUFFile) -> VisionSettings:
    """Read a CLIP tower's keys. Raises GGUFError for a key that is missing or mistyped."""
    v, tower = "clip.vision.", read_tower(file)
    layers = file.array(v + "feature_layer", "int", [tower.n_stored])
    if len(layers) != 1:
        raise ReferenceError(file.path, v + "feature_layer", f"{len(layers)} layers, expected one")
    pinpoints = file.array(v + "image_grid_pinpoints", "int", [])
    plain_gelu = tower.config["hidden_act"] == "gelu_pytorch_tanh"
    return replace(
        tower,
        config={
            **tower.config,
            "num_hidden_layers": layers[0],
            "hidden_act": "gelu" if plain_gelu else tower.config["hidden_act"],
        },
        merge=1,
        sizes=tuple(zip(pinpoints[::2], pinpoints[1::2], strict=True)),
    )


def read_tower(file: GGUFFile) -> VisionSettings:
    """Read a SigLIP tower's keys, which are also a CLIP tower's. Raises GGUFError as `read_vision` does."""
    v, blocks = "clip.vision.", file.integer("clip.vision.block_count", 1, LARGE)
    act = "gelu_pytorch_tanh" if file.boolean("clip.use_gelu", False) else "quick_gelu"
    config = {
        "hidden_size": file.integer(v + "embedding_length", 1, LARGE),
        "intermediate_size": whole(file, v + "feed_forward_length", None, blocks),
        "num_hidden_layers": blocks,
        "num_attention_heads": whole(file, v + "attention.head_count", None, blocks),
        "image_size": file.integer(v + "image_size", 1, LARGE),
        "patch_size": file.integer(v + "patch_size", 1, LARGE),
        "hidden_act": "silu" if file.boolean("clip.use_silu", False) else act,
        "layer_norm_eps": file.number(v + "attention.layer_norm_epsilon", 0.0, 1.0, layers=blocks),
    }
    mean, std = (tuple(file.array(v + name, "float")) for name in ("image_mean", "image_std"))
    return VisionSettings(config, blocks, mean, std, file.integer(v + "projector.scale_factor", 1, LARGE, 4))
