"""Make random LLaVA pairs: a text GGUF and an mmproj GGUF with every option that a test turns, from a seed.

Noise grows through the weights as in a real model (`hot`) or about half as much (`calm`), so a bound that holds on them
means something. The models speak nonsense.
Matrices may be of any type. For the types in `ROUNDED` the `gguf` package rounds the same weights to the type; it has
no quantiser for the other types, or a poor one, so they get random blocks (`random_blocks`) of the same size.
D width, F MLP width, V vocabulary, P patch, dh head size.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from .projectors import Mobile, projector_tensors
from .random_blocks import random_tensor
from .random_weights import Random, affine_norm, norm
from .vocabulary import size_of, vocabulary
from .writing import Metadata, StoredTensor, held, write

ROUNDED = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
Kinds = tuple[tuple[str, str], ...]
"""Types of single matrices: patterns of tensor names, each with a type; the first pattern that matches counts."""

CLIP_MEAN, CLIP_STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]


class Typed(Protocol):
    """A specification that says which types its matrices have."""

    @property
    def kind(self) -> str: ...
    @property
    def kinds(self) -> Kinds: ...


@dataclass(frozen=True, slots=True)
class TextSpec:
    """A llama-architecture decoder. `None` leaves the key out of the file."""

    width: int = 48
    n_layer: int = 3
    n_head: int = 4
    n_head_kv: int = 2
    mlp_width: int = 80
    context: int = 512
    eps: float = 1e-5
    tied: bool = False
    biases: bool = False
    rope_base: float | None = None
    rope_scaling: Literal["linear", "yarn"] | None = None
    rope_factor: float = 4.0
    original_context: int | None = None
    rope_divisors: bool = False  # rope_freqs.weight, as Llama 3 files have
    window: int | None = None
    words: tuple[str, ...] | None = None  # the vocabulary's words, and their letters; None: `WORDS` and all of ASCII
    kind: str = "F32"
    kinds: Kinds = ()


@dataclass(frozen=True, slots=True)
class VisionSpec:
    """A CLIP tower and its `mlp` projector. `None` leaves the key out of the file."""

    width: int = 40
    n_block: int = 4
    n_head: int = 4
    mlp_width: int = 72
    image_size: int = 56
    patch_size: int = 14
    middle: int = 56  # rows of mm.0
    eps: float = 1e-5
    feature_layer: int | None = None
    post_ln: bool = False
    use_gelu: bool = False
    class_token: bool = True
    pre_ln: bool = True
    swapped: bool = False  # ffn_up and ffn_down by each other's names, as old converters wrote them
    sizes: tuple[tuple[int, int], ...] = ()
    """LLaVA-1.6: widths and heights of the pictures that tiles are cut from."""
    mobile: Mobile | None = None
    """MobileVLM's projector, or MobileVLM V2's."""
    norms: bool = False  # Yi-VL: a norm behind each of the projector's matrices
    projector_gain: float = 1.0
    """By how much the input of the projector's activation is larger: from about 16, no two kinds of GELU differ."""
    kind: str = "F32"
    kinds: Kinds = ()


@dataclass(frozen=True, slots=True)
class Pair:
    """The two files of a pair."""

    text: Path
    mmproj: Path


def build(folder: Path, text: TextSpec, vision: VisionSpec, seed: int = 0, *, calm: bool = False) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random = Random(seed, 0.0 if calm else 1.0)
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    tensors = stored(text_tensors(text, random), text, seed)
    write(pair.text, text_metadata(text), tensors, text.kind)
    tensors = stored(vision_tensors(vision, text.width, random), vision, seed)
    write(pair.mmproj, vision_metadata(vision, text.width), tensors, vision.kind)
    return pair


def stored(tensors: Mapping[str, StoredTensor], s: Typed, seed: int) -> dict[str, StoredTensor]:
    """Return the tensors with the types that `s.kinds` gives them; random blocks for a type that is not `ROUNDED`."""
    return {name: _stored(name, tensor, s, seed) for name, tensor in tensors.items()}


def _stored(name: str, tensor: StoredTensor, s: Typed, seed: int) -> StoredTensor:
    kind = next((kind for pattern, kind in s.kinds if fnmatchcase(name, pattern)), tensor.kind or s.kind)
    if len(tensor.shape) != 2 or name == "v.position_embd.weight":
        return tensor
    if kind in ROUNDED:
        return tensor.as_kind(kind)
    rows, columns = tensor.shape
    gain = round(float(tensor.load().std()) * columns**0.5, 2)  # rounded, so that no platform's last bit shows
    blocks = partial(random_tensor, kind, rows, columns, [seed, *name.encode()], gain=gain)
    return StoredTensor(tensor.shape, blocks, kind)


def text_metadata(s: TextSpec, tokens: Metadata | None = None) -> Metadata:
    """Return the keys of a text file; `tokens`: those of its vocabulary, by default a small SPM one."""
    optional = {
        "llama.rope.freq_base": s.rope_base,
        "llama.rope.scaling.type": s.rope_scaling,
        "llama.rope.scaling.factor": s.rope_factor if s.rope_scaling else None,
        "llama.rope.scaling.original_context_length": s.original_context,
        "llama.attention.sliding_window": s.window,
    }
    return {
        "general.architecture": "llama",
        "llama.block_count": s.n_layer,
        "llama.context_length": s.context,
        "llama.embedding_length": s.width,
        "llama.feed_forward_length": s.mlp_width,
        "llama.attention.head_count": s.n_head,
        "llama.attention.head_count_kv": s.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": s.eps,
        **{key: value for key, value in optional.items() if value is not None},
        **(vocabulary(s.words) if tokens is None else tokens),
    }


def text_tensors(s: TextSpec, random: Random, tokens: Metadata | None = None) -> dict[str, StoredTensor]:
    D, dh, V = s.width, s.width // s.n_head, size_of(vocabulary(s.words) if tokens is None else tokens)
    tensors = {
        "token_embd.weight": random.normal("token_embd", V, D, std=(3 / D) ** 0.5 if s.tied else 1.0),
        "output_norm.weight": random.normal("output_norm", D, std=0.1, mean=4.0),
    }
    if not s.tied:
        tensors["output.weight"] = random.matrix("output", V, D)
    if s.rope_divisors:  # from 1 (fast pairs, kept) up to 8 (slow pairs, stretched)
        tensors["rope_freqs.weight"] = held(np.linspace(1.0, 8.0, dh // 2, dtype=np.float32))
    for i in range(s.n_layer):
        tensors |= _text_block(f"blk.{i}", s, random)
    return tensors


def _text_block(name: str, s: TextSpec, random: Random) -> dict[str, StoredTensor]:
    D, F, KV = s.width, s.mlp_width, s.width // s.n_head * s.n_head_kv
    matrices = {
        "attn_q": (D, D, random.qk),
        "attn_k": (KV, D, random.qk),
        "attn_v": (KV, D, 1.0),
        "attn_output": (D, D, random.residual),
        "ffn_gate": (F, D, 1.0),
        "ffn_up": (F, D, 1.0),
        "ffn_down": (D, F, random.residual),
    }
    tensors = {f"{name}.{part}.weight": norm(f"{name}.{part}", D, random) for part in ("attn_norm", "ffn_norm")}
    for part, (rows, columns, gain) in matrices.items():
        tensors[f"{name}.{part}.weight"] = random.matrix(f"{name}.{part}", rows, columns, gain)
        if s.biases:
            tensors[f"{name}.{part}.bias"] = random.normal(f"{name}.{part}.bias", rows, std=0.2)
    return tensors


def vision_metadata(s: VisionSpec, text_width: int) -> Metadata:
    v = "clip.vision."
    optional: dict[str, list[int] | bool | str | None] = {
        v + "feature_layer": None if s.feature_layer is None else [s.feature_layer],
        "clip.use_gelu": s.use_gelu or None,
    }
    if s.sizes:
        optional[v + "image_grid_pinpoints"] = [side for size in s.sizes for side in size]
        optional |= {v + "image_aspect_ratio": "anyres", v + "mm_patch_merge_type": "spatial_unpad"}
    return {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": s.mobile or "mlp",
        v + "image_size": s.image_size,
        v + "patch_size": s.patch_size,
        v + "embedding_length": s.width,
        v + "feed_forward_length": s.mlp_width,
        v + "block_count": s.n_block,
        v + "projection_dim": text_width,
        v + "attention.head_count": s.n_head,
        v + "attention.layer_norm_epsilon": s.eps,
        v + "image_mean": CLIP_MEAN,
        v + "image_std": CLIP_STD,
        **{key: value for key, value in optional.items() if value is not None},
    }


def vision_tensors(s: VisionSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    D, P = s.width, s.patch_size
    n_rows = (s.image_size // P) ** 2 + s.class_token
    tensors = {
        "v.patch_embd.weight": random.normal("v.patch_embd", D, 3, P, P, std=(3 * P * P) ** -0.5),
        "v.position_embd.weight": random.normal("v.position_embd", n_rows, D, std=0.5),
    }
    if s.class_token:
        tensors["v.class_embd"] = random.normal("v.class_embd", D)
    for name in ["v.pre_ln"] * s.pre_ln + ["v.post_ln"] * s.post_ln:
        tensors |= affine_norm(name, D, random)
    for i in range(s.n_block):
        tensors |= _vision_block(f"v.blk.{i}", s, random)
    return tensors | projector_tensors(s, text_width, random)


def _vision_block(name: str, s: VisionSpec, random: Random) -> dict[str, StoredTensor]:
    D, F = s.width, s.mlp_width
    stored = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if s.swapped else {}
    matrices = {
        "attn_q": (D, D, random.qk),
        "attn_k": (D, D, random.qk),
        "attn_v": (D, D, 1.0),
        "attn_out": (D, D, random.residual),
        "ffn_up": (F, D, 1.0),
        "ffn_down": (D, F, random.residual),
    }
    tensors = affine_norm(f"{name}.ln1", D, random) | affine_norm(f"{name}.ln2", D, random)
    for part, (rows, columns, gain) in matrices.items():
        in_file = f"{name}.{stored.get(part, part)}"
        tensors[f"{in_file}.weight"] = random.matrix(f"{name}.{part}", rows, columns, gain)
        tensors[f"{in_file}.bias"] = random.normal(f"{name}.{part}.bias", rows, std=0.1)
    return tensors
