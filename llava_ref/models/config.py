"""Read hyper-parameters from GGUF metadata and check them against each other. `weights` checks the shapes.

Key names: llama.cpp b10605, src/llama-arch.cpp and tools/mtmd/clip-impl.h. `keys` refuses those that are not obeyed.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Literal

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from .keys import refuse_text, refuse_vision
from .rope import RopeConfig, ramp

MAX_WIDTH, MAX_BLOCKS, MAX_HEADS = 1 << 17, 1024, 4096
WIDEST = 512  # pixels along a square of a picture of any size: the smallest picture of llama.cpp has eight squares


@dataclass(frozen=True, slots=True)
class VisionConfig:
    """A vision transformer and its projector, from an mmproj file."""

    projector: str  # "mlp", "gemma3"
    image_size: int  # pixels, square
    patch_size: int
    width: int  # D
    n_head: int
    mlp_width: int
    n_stored: int  # clip.vision.block_count
    feature_layer: int | None  # index of a hidden state, 0 is the first block's input; None: the key is absent
    eps: float
    activation: Literal["gelu", "gelu_quick", "silu"]  # "gelu": erf or tanh is a quirk
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def grid(self) -> int:
        """Return the patches along one side."""
        return self.image_size // self.patch_size

    @property
    def n_patches(self) -> int:
        return self.grid**2

    def about(self) -> dict[str, Any]:
        """Return what every tower's file says, as JSON."""
        return {
            "projector": self.projector,
            "image_size": self.image_size,
            "patch_size": self.patch_size,
            "grid": [self.grid, self.grid],
            "mean": list(self.mean),
            "std": list(self.std),
            "width": self.width,
            "blocks_stored": self.n_stored,
            "feature_layer": self.feature_layer,
        }


@dataclass(frozen=True, slots=True)
class TextConfig:
    """A decoder."""

    architecture: str  # general.architecture
    name: str  # general.name
    width: int  # D
    n_layer: int
    n_head: int
    n_head_kv: int
    head_size: int  # dh
    mlp_width: int
    n_vocab: int
    context: int  # positions the model was trained for
    eps: float
    attention_scale: float
    window: int | None  # a query sees this many positions, itself included
    rope: RopeConfig

    def about(self) -> dict[str, Any]:
        """Return what every decoder's file says, as JSON."""
        return {
            "architecture": self.architecture,
            "context": self.context,
            "width": self.width,
            "blocks": self.n_layer,
            "heads": self.n_head,
            "key_value_heads": self.n_head_kv,
            "head_size": self.head_size,
            "mlp_width": self.mlp_width,
            "rope": self.rope.about(),
            "attention_scale": self.attention_scale,
            "sliding_window": self.window,
        }


def projector_of(file: GGUFFile) -> str:
    """Return the projector's type. Raises GGUFError where there is no vision tower."""
    if not file.boolean("clip.has_vision_encoder", False):
        raise GGUFError(file.path, "clip.has_vision_encoder", "not true: no vision tower, not an mmproj file")
    # Files of 2023 do not name their projector; there was only one. llama.cpp b10605 refuses them.
    return file.string("clip.projector_type", "") or file.string("clip.vision.projector_type", "") or "mlp"


def read_vision(file: GGUFFile, obeyed: Collection[str] = (), *, square: int | None = None) -> VisionConfig:
    """Read a tower's settings. `obeyed`: keys of `keys.VISION` that the family reads itself. `square`: how
    many patches a side have the squares that make pictures of any size; None: a picture is `image_size` a side.

    Raises GGUFError with the key that is missing, mistyped or impossible."""
    projector = projector_of(file)
    refuse_vision(file, obeyed)
    v = "clip.vision."
    blocks = file.integer(v + "block_count", 1, MAX_BLOCKS)
    config = VisionConfig(
        projector=projector,
        image_size=file.integer(v + "image_size", 1, 8192),
        patch_size=file.integer(v + "patch_size", 1, 8192),
        width=file.integer(v + "embedding_length", 1, MAX_WIDTH),
        n_head=file.integer(v + "attention.head_count", 1, MAX_HEADS, layers=blocks),
        mlp_width=file.integer(v + "feed_forward_length", 1, MAX_WIDTH, layers=blocks),
        n_stored=blocks,
        feature_layer=_feature_layer(file, blocks),
        eps=file.number(v + "attention.layer_norm_epsilon", 0.0, 1.0, layers=blocks),
        activation=_activation(file),
        mean=_triple(file, v + "image_mean", 0.0, 1.0),
        std=_triple(file, v + "image_std", 1e-6, 1e3),
    )
    if square is None and config.image_size % config.patch_size:
        raise GGUFError(file.path, v + "patch_size", f"{config.patch_size} does not divide image_size")
    if square is not None and config.patch_size * square > WIDEST:
        problem = f"{config.patch_size} x {square} is more than {WIDEST} pixels"
        raise GGUFError(file.path, v + "patch_size", problem)
    _check_vision(file, config)
    return config


def _check_vision(file: GGUFFile, c: VisionConfig) -> None:
    """Raise GGUFError where one setting contradicts another."""
    v = "clip.vision."
    if c.width % c.n_head:
        raise GGUFError(file.path, v + "attention.head_count", f"{c.n_head} does not divide width {c.width}")
    for key, want in (("attention.head_dim", c.width // c.n_head), ("attention.head_count_kv", c.n_head)):
        found = file.integer(v + key, 0, MAX_WIDTH, 0, layers=c.n_stored)
        if found not in (0, want):
            raise GGUFError(file.path, v + key, f"{found} is not supported, expected {want}")


def _feature_layer(file: GGUFFile, n_stored: int) -> int | None:
    key = "clip.vision.feature_layer"
    layers = file.array(key, "int", None)
    if layers is None:
        return None
    if len(layers) != 1:
        raise GGUFError(file.path, key, f"{len(layers)} layers, expected one")
    if not 1 <= layers[0] <= n_stored:
        raise GGUFError(file.path, key, f"{layers[0]} is not a hidden state, expected 1..{n_stored}")
    return int(layers[0])


def _activation(file: GGUFFile) -> Literal["gelu", "gelu_quick", "silu"]:
    gelu, silu = file.boolean("clip.use_gelu", False), file.boolean("clip.use_silu", False)
    if gelu and silu:
        raise GGUFError(file.path, "clip.use_silu", "set together with clip.use_gelu, expected at most one")
    return "gelu" if gelu else "silu" if silu else "gelu_quick"


def _triple(file: GGUFFile, key: str, low: float, high: float) -> tuple[float, float, float]:
    values = file.array(key, "float")
    if len(values) != 3:
        raise GGUFError(file.path, key, f"{len(values)} values, expected 3 (red, green, blue)")
    for value in values:
        if not low <= value <= high:  # also false for NaN
            raise GGUFError(file.path, key, f"{value} is out of range, expected {low:g}..{high:g}")
    r, g, b = (float(value) for value in values)
    return r, g, b


def read_text(file: GGUFFile, arch: str, obeyed: Collection[str] = ()) -> TextConfig:
    """Read a decoder's settings. `obeyed`: keys of `keys.TEXT` that the family reads itself.

    Raises GGUFError with the key that is missing, mistyped or impossible."""
    refuse_text(file, arch, obeyed)
    width = file.integer(f"{arch}.embedding_length", 1, MAX_WIDTH)
    blocks = file.integer(f"{arch}.block_count", 1, MAX_BLOCKS)
    n_head, n_head_kv, head_size = _heads(file, arch, width, blocks)
    context = file.integer(f"{arch}.context_length", 1, 1 << 24)
    scale = file.number(f"{arch}.attention.scale", 0.0, 1e3, 0.0, layers=blocks)
    return TextConfig(
        architecture=arch,
        name=file.string("general.name", ""),
        width=width,
        n_layer=blocks,
        n_head=n_head,
        n_head_kv=n_head_kv,
        head_size=head_size,
        mlp_width=file.integer(f"{arch}.feed_forward_length", 1, 1 << 20, layers=blocks),
        n_vocab=file.array_length("tokenizer.ggml.tokens"),
        context=context,
        eps=file.number(f"{arch}.attention.layer_norm_rms_epsilon", 0.0, 1.0, layers=blocks),
        attention_scale=scale or 1 / math.sqrt(head_size),
        window=file.integer(f"{arch}.attention.sliding_window", 0, 1 << 24, 0, layers=blocks) or None,
        rope=_read_rope(file, arch, head_size, context, blocks),
    )


def _heads(file: GGUFFile, arch: str, width: int, blocks: int) -> tuple[int, int, int]:
    """Return the number of heads, that of key/value heads, and the size of one."""
    a = f"{arch}.attention."
    n_head = file.integer(a + "head_count", 1, MAX_HEADS, layers=blocks)
    n_head_kv = file.integer(a + "head_count_kv", 1, MAX_HEADS, n_head, layers=blocks)
    if n_head > width:
        raise GGUFError(file.path, a + "head_count", f"{n_head} is more than the width {width}")
    if n_head % n_head_kv:
        raise GGUFError(file.path, a + "head_count_kv", f"{n_head_kv} does not divide head_count {n_head}")
    head_size = file.integer(a + "key_length", 1, MAX_WIDTH, width // n_head, layers=blocks)
    if file.integer(a + "value_length", 1, MAX_WIDTH, head_size, layers=blocks) != head_size:
        raise GGUFError(file.path, a + "value_length", f"differs from key_length {head_size}")
    return n_head, n_head_kv, head_size


def _read_rope(file: GGUFFile, arch: str, head_size: int, context: int, blocks: int) -> RopeConfig:
    r = f"{arch}.rope."
    n_rot = file.integer(r + "dimension_count", 2, MAX_WIDTH, head_size, layers=blocks)
    if n_rot != head_size or n_rot % 2:  # llama.cpp b10605 llama-model.cpp insists on it
        raise GGUFError(file.path, r + "dimension_count", f"{n_rot} differs from head size {head_size}, or is odd")
    kind, factor = _scaling(file, arch)
    config = RopeConfig(
        n_rot=n_rot,
        base=file.number(r + "freq_base", 1.0, 1e12, 10000.0, layers=blocks),
        scaling=kind,
        factor=factor,
        original_context=file.integer(r + "scaling.original_context_length", 1, 1 << 24, context),
        attn_factor=file.number(r + "scaling.attn_factor", 0.0, 1e3, 1.0),
        yarn_attn_factor=file.number(r + "scaling.yarn_attn_factor", 0.0, 1e3, 0.0) or None,
        beta_fast=file.number(r + "scaling.yarn_beta_fast", 0.0, 1e6, 0.0) or 32.0,  # 0 means the default too
        beta_slow=file.number(r + "scaling.yarn_beta_slow", 0.0, 1e6, 0.0) or 1.0,
    )
    if kind == "yarn":
        _check_ramp(file, arch, config)
    return config


def _scaling(file: GGUFFile, arch: str) -> tuple[Literal["none", "linear", "yarn"], float]:
    """Return how positions are scaled, and by how much. A factor of 0 is none, and the old key counts where the new one
    is absent (llama.cpp b10605, llama-model.cpp)."""
    r = f"{arch}.rope."
    key = r + ("scaling.factor" if r + "scaling.factor" in file else "scale_linear")
    factor = file.number(key, 0.0, 1e6, 0.0)
    kind = file.string(r + "scaling.type", "linear")
    if kind not in ("none", "linear", "yarn"):
        raise GGUFError(file.path, r + "scaling.type", f"{kind!r} is not supported, expected none, linear or yarn")
    if kind == "none" or not factor:
        return "none", 1.0
    return ("yarn" if kind == "yarn" else "linear"), factor


def _check_ramp(file: GGUFFile, arch: str, c: RopeConfig) -> None:
    """Raise GGUFError where YaRN's ramp ends before it begins: llama.cpp and transformers then differ."""
    key = f"{arch}.rope.scaling.original_context_length"
    if c.base == 1:
        raise GGUFError(file.path, f"{arch}.rope.freq_base", "1 turns every pair alike, so YaRN has no ramp")
    low, high = ramp(c)
    if high < low:
        problem = f"{c.original_context} positions give YaRN a ramp that ends at pair {high} and begins at {low}"
        raise GGUFError(file.path, key, problem)
