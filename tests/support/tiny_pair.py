"""A tiny random LLaVA-1.5-shaped pair of GGUF files, for tests of what stands on files."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from llava_ref.conformance.pairs.pairs import CLIP_MEAN, CLIP_STD
from llava_ref.conformance.pairs.writing import Metadata, StoredTensor, held, write

VICUNA = (
    "{{ bos_token }}{% for m in messages %}{% if m['role'] == 'user' %}USER: {{ m['content'] }} "
    "{% else %}ASSISTANT: {{ m['content'] }}</s>{% endif %}{% endfor %}ASSISTANT:"
)
WORDS = "▁the ▁a ▁is ▁in ▁of ▁USER ▁AS SIST ANT : . ? ▁red ▁blue ▁what ▁pic ture ▁one ▁two er in on".split()


@dataclass(frozen=True)
class Tiny:
    """What a test may vary. The defaults are odd on purpose: few of the sizes are equal."""

    seed: int = 0
    width: int = 32
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    mlp_width: int = 64
    context: int = 128
    type: str = "F32"  # of the text model's matrices
    tied: bool = False
    template: str | None = None
    vision_width: int = 24
    vision_layers: int = 3
    vision_heads: int = 3
    vision_mlp: int = 40
    image_size: int = 28
    patch_size: int = 7
    projected: int | None = None  # rows of the projector's output, where it should not fit
    projector: str = "mlp"
    feature_layer: int | None = None
    post_ln: bool = False
    poisoned: str = ""  # a tensor that holds a NaN


def vocabulary() -> tuple[list[str], list[float], list[int]]:
    """Texts, scores and token types of an SPM vocabulary with byte tokens, letters and a few words."""
    normal, unknown, control, byte = 1, 2, 3, 6
    pieces = ["▁", *"abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789,!-"]
    parts = {word[:i] for word in WORDS for i in range(2, len(word) + 1)}  # SPM merges two pieces at a time
    merged = sorted(parts, key=lambda word: (len(word), word))
    rest = [*pieces, *(p for p in (":", ".", "?")), *(m for m in merged if m not in pieces)]
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *rest]
    types = [unknown, control, control, *[byte] * 256, *[normal] * len(rest)]
    return tokens, [0.0] * 259 + [-float(i) for i in range(len(rest))], types


def write_text(path: Path, t: Tiny) -> Path:
    """A llama-architecture model with random weights."""
    tokens, scores, types = vocabulary()
    metadata: Metadata = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.context_length": t.context,
        "llama.embedding_length": t.width,
        "llama.block_count": t.n_layer,
        "llama.feed_forward_length": t.mlp_width,
        "llama.attention.head_count": t.n_head,
        "llama.attention.head_count_kv": t.n_head_kv,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        **({} if t.template is None else {"tokenizer.chat_template": t.template}),
    }
    head = t.width // t.n_head
    shapes = {"token_embd.weight": (len(tokens), t.width), "output_norm.weight": (t.width,)}
    if not t.tied:
        shapes["output.weight"] = (len(tokens), t.width)
    for i in range(t.n_layer):
        shapes |= {
            f"blk.{i}.attn_norm.weight": (t.width,),
            f"blk.{i}.attn_q.weight": (t.width, t.width),
            f"blk.{i}.attn_k.weight": (t.n_head_kv * head, t.width),
            f"blk.{i}.attn_v.weight": (t.n_head_kv * head, t.width),
            f"blk.{i}.attn_output.weight": (t.width, t.width),
            f"blk.{i}.ffn_norm.weight": (t.width,),
            f"blk.{i}.ffn_gate.weight": (t.mlp_width, t.width),
            f"blk.{i}.ffn_up.weight": (t.mlp_width, t.width),
            f"blk.{i}.ffn_down.weight": (t.width, t.mlp_width),
        }
    write(path, metadata, _tensors(shapes, t.seed, t.poisoned), t.type)
    return path


def write_mmproj(path: Path, t: Tiny) -> Path:
    """A CLIP tower with class token and pre-norm, and a two-layer projector, with random weights."""
    v = "clip.vision."
    metadata: Metadata = {
        "general.architecture": "clip",
        "clip.has_vision_encoder": True,
        "clip.projector_type": t.projector,
        v + "image_size": t.image_size,
        v + "patch_size": t.patch_size,
        v + "embedding_length": t.vision_width,
        v + "feed_forward_length": t.vision_mlp,
        v + "block_count": t.vision_layers,
        v + "attention.head_count": t.vision_heads,
        v + "projection_dim": t.width,
        v + "attention.layer_norm_epsilon": 1e-5,
        v + "image_mean": CLIP_MEAN,
        v + "image_std": CLIP_STD,
        **({} if t.feature_layer is None else {v + "feature_layer": [t.feature_layer]}),
    }
    D, n_patches, out = t.vision_width, (t.image_size // t.patch_size) ** 2, t.projected or t.width
    shapes = {
        "v.class_embd": (D,),
        "v.patch_embd.weight": (D, 3, t.patch_size, t.patch_size),
        "v.position_embd.weight": (n_patches + 1, D),
        **_affine("v.pre_ln", D),
        **(_affine("v.post_ln", D) if t.post_ln else {}),
        **_affine("mm.0", out + 5, D),
        **_affine("mm.2", out, out + 5),
    }
    for i in range(t.vision_layers):
        for name in ("attn_q", "attn_k", "attn_v", "attn_out"):
            shapes |= _affine(f"v.blk.{i}.{name}", D, D)
        shapes |= _affine(f"v.blk.{i}.ln1", D) | _affine(f"v.blk.{i}.ln2", D)
        shapes |= _affine(f"v.blk.{i}.ffn_up", t.vision_mlp, D) | _affine(f"v.blk.{i}.ffn_down", D, t.vision_mlp)
    write(path, metadata, _tensors(shapes, t.seed + 1, t.poisoned))
    return path


def write_pair(folder: Path, t: Tiny | None = None) -> tuple[Path, Path]:
    """Both files, `text.gguf` and `mmproj.gguf`."""
    t = t or Tiny()
    return write_text(folder / "text.gguf", t), write_mmproj(folder / "mmproj.gguf", t)


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _tensors(shapes: dict[str, tuple[int, ...]], seed: int, poisoned: str) -> dict[str, StoredTensor]:
    """Norm gains near 1, everything else small."""
    tensors, rng = dict[str, StoredTensor](), np.random.default_rng(seed)
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        gain = len(shape) == 1 and name.endswith("weight")
        values = (values + gain).astype(np.float32)
        if name == poisoned:
            values.flat[-1] = np.nan
        tensors[name] = held(values)
    return tensors
