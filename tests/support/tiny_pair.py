"""A tiny random LLaVA-1.5-shaped pair of GGUF files, written by the gguf package, for tests of what stands on files."""

from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np

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
    writer, rng = gguf.GGUFWriter(path, "llama"), np.random.default_rng(t.seed)
    tokens, scores, types = vocabulary()
    writer.add_name("tiny")
    writer.add_context_length(t.context)
    writer.add_embedding_length(t.width)
    writer.add_block_count(t.n_layer)
    writer.add_feed_forward_length(t.mlp_width)
    writer.add_head_count(t.n_head)
    writer.add_head_count_kv(t.n_head_kv)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    if t.template is not None:
        writer.add_chat_template(t.template)
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
    _write_tensors(writer, shapes, rng, t.type, t.poisoned)
    return path


def write_mmproj(path: Path, t: Tiny) -> Path:
    """A CLIP tower with class token and pre-norm, and a two-layer projector, with random weights."""
    writer, rng = gguf.GGUFWriter(path, "clip"), np.random.default_rng(t.seed + 1)
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", t.projector)
    v = "clip.vision."
    for key, value in {
        "image_size": t.image_size,
        "patch_size": t.patch_size,
        "embedding_length": t.vision_width,
        "feed_forward_length": t.vision_mlp,
        "block_count": t.vision_layers,
        "attention.head_count": t.vision_heads,
        "projection_dim": t.width,
    }.items():
        writer.add_uint32(v + key, value)
    writer.add_float32(v + "attention.layer_norm_epsilon", 1e-5)
    writer.add_array(v + "image_mean", [0.48145466, 0.4578275, 0.40821073])
    writer.add_array(v + "image_std", [0.26862954, 0.26130258, 0.27577711])
    if t.feature_layer is not None:
        writer.add_array(v + "feature_layer", [t.feature_layer])
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
    _write_tensors(writer, shapes, rng, "F32", t.poisoned)
    return path


def write_pair(folder: Path, t: Tiny | None = None) -> tuple[Path, Path]:
    """Both files, `text.gguf` and `mmproj.gguf`."""
    t = t or Tiny()
    return write_text(folder / "text.gguf", t), write_mmproj(folder / "mmproj.gguf", t)


def _affine(name: str, *shape: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.weight": shape, f"{name}.bias": shape[:1]}


def _write_tensors(
    writer: gguf.GGUFWriter,
    shapes: dict[str, tuple[int, ...]],
    rng: np.random.Generator,
    matrix_type: str,
    poisoned: str,
) -> None:
    """Norm gains near 1, everything else small; matrices of the text model in `matrix_type`."""
    for name, shape in shapes.items():
        values = rng.standard_normal(shape) * (0.1 if len(shape) == 1 else shape[-1] ** -0.5)
        gain = len(shape) == 1 and name.endswith("weight")
        values = (values + gain).astype(np.float32)
        if name == poisoned:
            values.flat[-1] = np.nan
        if len(shape) == 2 and matrix_type != "F32":
            kind = gguf.GGMLQuantizationType[matrix_type]
            writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
