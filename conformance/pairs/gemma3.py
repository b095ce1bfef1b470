"""Make random Gemma 3 pairs: a text GGUF of arch `gemma3`, an mmproj with a SigLIP tower and projector `gemma3`.

Keys, names and shapes are those that llama.cpp's converter writes (conversion/gemma.py, b11549). Sizes are odd and
unequal on purpose. Norm weights hold the model's +1 and are far from 1, so that one left out or added shows.
D width, dh head size, F MLP width, V vocabulary, P patch.
"""

from dataclasses import dataclass
from pathlib import Path

from .gemma3_vocabulary import gemma_vocabulary
from .pairs import Kinds, Pair, stored
from .random_weights import Random, affine_norm
from .writing import Metadata, StoredTensor, write

HALF = [0.5, 0.5, 0.5]  # mean and deviation of SigLIP's pixels
NORMS = {"attn_norm": 2.0, "post_attention_norm": 4.0, "ffn_norm": 1.7, "post_ffw_norm": 2.5}  # their mean gains
HEAD_NORMS = {"attn_q_norm": 1.7, "attn_k_norm": 1.4}


@dataclass(frozen=True, slots=True)
class Gemma3Spec:
    """A Gemma 3 decoder. `None` leaves the key out of the file."""

    width: int = 60
    n_layer: int = 7  # five window layers, a full one, a window layer
    n_head: int = 4
    n_head_kv: int = 2
    head_size: int = 10  # dh: the heads are 40 wide together
    mlp_width: int = 88
    context: int = 512
    eps: float = 1e-6
    window: int | None = 7
    pattern: int | None = None  # attention.sliding_window_pattern: every so many layers a full one; None: 6
    rope_base: float = 1e6
    rope_base_swa: float | None = None  # of window layers; None: 10000
    rope_factor: float | None = None  # of full layers, scaling type "linear"
    embedding_std: float = 0.25
    """How large the embeddings are, which are also the output matrix: large ones make greedy repeat one token."""
    kind: str = "F32"
    kinds: Kinds = ()


@dataclass(frozen=True, slots=True)
class SiglipSpec:
    """A SigLIP tower and Gemma 3's projector."""

    width: int = 36
    n_block: int = 3
    n_head: int = 3
    mlp_width: int = 68
    image_size: int = 84
    patch_size: int = 14
    merge: int = 2  # by how much patches are averaged each way; 4 has no key
    eps: float = 1e-6
    use_gelu: bool = True  # False: no key, which means quick GELU
    swapped: bool = False  # ffn_up and ffn_down by each other's names, as old converters wrote them
    kind: str = "F32"
    kinds: Kinds = ()


def build_gemma3(folder: Path, text: Gemma3Spec, vision: SiglipSpec, seed: int = 0) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random = Random(seed, 1.0)
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    write(pair.text, gemma3_metadata(text), stored(gemma3_tensors(text, random), text, seed), text.kind)
    tensors = stored(siglip_tensors(vision, text.width, random), vision, seed)
    write(pair.mmproj, siglip_metadata(vision, text.width), tensors, vision.kind)
    return pair


def gemma3_metadata(s: Gemma3Spec) -> Metadata:
    optional = {
        "gemma3.attention.sliding_window": s.window,
        "gemma3.attention.sliding_window_pattern": s.pattern,
        "gemma3.rope.freq_base_swa": s.rope_base_swa,
        "gemma3.rope.scaling.type": "linear" if s.rope_factor else None,
        "gemma3.rope.scaling.factor": s.rope_factor,
    }
    return {
        "general.architecture": "gemma3",
        "gemma3.context_length": s.context,
        "gemma3.embedding_length": s.width,
        "gemma3.block_count": s.n_layer,
        "gemma3.feed_forward_length": s.mlp_width,
        "gemma3.attention.head_count": s.n_head,
        "gemma3.attention.head_count_kv": s.n_head_kv,
        "gemma3.attention.key_length": s.head_size,
        "gemma3.attention.value_length": s.head_size,
        "gemma3.attention.layer_norm_rms_epsilon": s.eps,
        "gemma3.rope.freq_base": s.rope_base,
        **{key: value for key, value in optional.items() if value is not None},
        **gemma_vocabulary(),
    }


def gemma3_tensors(s: Gemma3Spec, random: Random) -> dict[str, StoredTensor]:
    V = len(gemma_vocabulary()["tokenizer.ggml.tokens"])  # type: ignore[arg-type]
    tensors = {
        "token_embd.weight": random.normal("token_embd", V, s.width, std=s.embedding_std),
        "output_norm.weight": random.normal("output_norm", s.width, std=0.4, mean=2.2),
    }
    for i in range(s.n_layer):
        tensors |= _text_block(f"blk.{i}", s, random)
    return tensors


def _text_block(name: str, s: Gemma3Spec, random: Random) -> dict[str, StoredTensor]:
    D, F, Q, KV = s.width, s.mlp_width, s.n_head * s.head_size, s.n_head_kv * s.head_size
    matrices = {
        "attn_q": (Q, D),
        "attn_k": (KV, D),
        "attn_v": (KV, D),
        "attn_output": (D, Q),
        "ffn_gate": (F, D),
        "ffn_up": (F, D),
        "ffn_down": (D, F),
    }
    gains = [(norm, D, mean) for norm, mean in NORMS.items()]
    gains += [(norm, s.head_size, mean) for norm, mean in HEAD_NORMS.items()]
    tensors = {
        f"{name}.{norm}.weight": random.normal(f"{name}.{norm}", size, std=0.3 * mean, mean=mean)
        for norm, size, mean in gains
    }
    return tensors | {
        f"{name}.{part}.weight": random.matrix(f"{name}.{part}", *shape) for part, shape in matrices.items()
    }


def siglip_metadata(s: SiglipSpec, text_width: int) -> Metadata:
    v = "clip.vision."
    optional = {
        v + "projector.scale_factor": s.merge if s.merge != 4 else None,
        "clip.use_gelu": s.use_gelu or None,
    }
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "gemma3",
        v + "image_size": s.image_size,
        v + "patch_size": s.patch_size,
        v + "embedding_length": s.width,
        v + "feed_forward_length": s.mlp_width,
        v + "block_count": s.n_block,
        v + "projection_dim": text_width,
        v + "attention.head_count": s.n_head,
        v + "attention.layer_norm_epsilon": s.eps,
        v + "image_mean": HALF,
        v + "image_std": HALF,
        **{key: value for key, value in optional.items() if value is not None},
    }


def siglip_tensors(s: SiglipSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    D = s.width
    projection = random.matrix("mm.input_projection", D, text_width, (text_width / D) ** 0.5)
    projector = {
        "mm.soft_emb_norm.weight": random.normal("mm.soft_emb_norm", D, std=0.5, mean=2.0),
        "mm.input_projection.weight": projection.as_kind("F16"),  # also in a float32 file; y = x @ W
    }
    return siglip_tower(s, projector, random)


def siglip_tower(s: SiglipSpec, projector: dict[str, StoredTensor], random: Random) -> dict[str, StoredTensor]:
    """Return the tensors of a tower with those of its projector, in the order of a file."""
    D, P = s.width, s.patch_size
    kernel = random.normal("v.patch_embd", D, 3, P, P, std=(3 * P * P) ** -0.5)
    tensors = {
        "v.patch_embd.weight": kernel.as_kind("F32"),  # as converted, whatever the other matrices are
        "v.patch_embd.bias": random.normal("v.patch_embd.bias", D, std=0.2),
        "v.position_embd.weight": random.normal("v.position_embd", (s.image_size // P) ** 2, D, std=0.5),
        **affine_norm("v.post_ln", D, random),
        **projector,
    }
    for i in range(s.n_block):
        tensors |= siglip_block(f"v.blk.{i}", s, random)
    return tensors


def siglip_block(name: str, s: SiglipSpec, random: Random) -> dict[str, StoredTensor]:
    """Return the tensors of one block of a tower."""
    D, F = s.width, s.mlp_width
    in_file = {"ffn_up": "ffn_down", "ffn_down": "ffn_up"} if s.swapped else {}
    matrices = {part: (D, D) for part in ("attn_q", "attn_k", "attn_v", "attn_out")}
    matrices |= {"ffn_up": (F, D), "ffn_down": (D, F)}
    tensors = affine_norm(f"{name}.ln1", D, random) | affine_norm(f"{name}.ln2", D, random)
    for part, (rows, columns) in matrices.items():
        gain = random.qk if part in ("attn_q", "attn_k") else 1.0
        to = f"{name}.{in_file.get(part, part)}"
        tensors[f"{to}.weight"] = random.matrix(f"{name}.{part}", rows, columns, gain)
        tensors[f"{to}.bias"] = random.normal(f"{name}.{part}.bias", rows, std=0.1)
    return tensors
