"""Make random pairs of Qwen2-VL and Qwen2.5-VL: a text GGUF of arch `qwen2vl`, an mmproj with either one's tower.

Keys, names and shapes are those that llama.cpp's converter writes (conversion/qwenvl.py, b11549). Sizes are odd and
unequal on purpose; gains of norms are far from 1, and everything that has a bias in a released file has one.
D width, dh head size, F MLP width, V vocabulary, P patch, M merged width.
"""

from dataclasses import dataclass
from pathlib import Path

from .bpe_vocabulary import bpe_vocabulary
from .pairs import CLIP_MEAN, CLIP_STD, Kinds, Pair, stored
from .random_weights import Random
from .vocabulary import size_of
from .writing import Metadata, StoredTensor, write

CONTROLS = ("<|endoftext|>", "<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
END = "<|im_end|>"
MERGE = 2  # patches each way that become one row

# ChatML as Qwen/Qwen2.5-VL-7B-Instruct was trained with: a system text where the conversation has none.
TEMPLATE = """\
{%- for message in messages -%}
    {%- if loop.first and message.role != 'system' -%}
        {{- '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' -}}
    {%- endif -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class QwenTextSpec:
    """A decoder of arch `qwen2vl`, or `qwen2` without sections. `None` leaves the key out of the file."""

    width: int = 48
    n_layer: int = 3
    n_head: int = 4  # of 12
    n_head_kv: int = 2
    mlp_width: int = 88
    context: int = 1024
    eps: float = 1e-6
    sections: tuple[int, ...] = (1, 2, 3, 0)  # pairs of channels turned by time, row, column; none: by one position
    rope_base: float | None = 1e4
    tied: bool = False
    kind: str = "F32"
    kinds: Kinds = ()


@dataclass(frozen=True, slots=True)
class QwenVisionSpec:
    """A tower and its merger. `gated`: Qwen2.5-VL's; else Qwen2-VL's."""

    gated: bool = True
    width: int = 40
    n_block: int = 3
    n_head: int = 2
    mlp_width: int = 120  # Qwen2-VL: a multiple of the width
    patch_size: int = 14
    image_size: int = 56  # for which nobody asks
    pattern: int = 2  # n_wa_pattern: every so many blocks, one in which patches see all others
    eps: float = 1e-6
    swapped: bool = False  # Qwen2-VL: ffn_up and ffn_down by each other's names, as an old converter wrote them
    kind: str = "F32"
    kinds: Kinds = ()


def build_qwen2vl(folder: Path, text: QwenTextSpec, vision: QwenVisionSpec, seed: int = 0) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random = Random(seed, 1.0)
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    write(pair.text, qwen_text_metadata(text), stored(qwen_text_tensors(text, random), text, seed), text.kind)
    tensors = stored(qwen_vision_tensors(vision, text.width, random), vision, seed)
    write(pair.mmproj, qwen_vision_metadata(vision, text.width), tensors, vision.kind)
    return pair


def qwen_text_metadata(s: QwenTextSpec, tokens: Metadata | None = None) -> Metadata:
    """Return the keys of a text file; `tokens`: those of its vocabulary, by default Qwen2-VL's."""
    arch = "qwen2vl" if s.sections else "qwen2"
    return {
        "general.architecture": arch,
        f"{arch}.context_length": s.context,
        f"{arch}.embedding_length": s.width,
        f"{arch}.block_count": s.n_layer,
        f"{arch}.feed_forward_length": s.mlp_width,
        f"{arch}.attention.head_count": s.n_head,
        f"{arch}.attention.head_count_kv": s.n_head_kv,
        f"{arch}.attention.layer_norm_rms_epsilon": s.eps,
        **({f"{arch}.rope.dimension_sections": list(s.sections)} if s.sections else {}),
        **({} if s.rope_base is None else {f"{arch}.rope.freq_base": s.rope_base}),
        **(qwen_vocabulary() if tokens is None else tokens),
    }


def qwen_vocabulary() -> Metadata:
    """Return the `tokenizer.` keys: byte-level BPE that text is cut for as in Qwen2, ChatML's and pictures' tokens."""
    return bpe_vocabulary("qwen2", CONTROLS, [END], TEMPLATE)


def qwen_text_tensors(s: QwenTextSpec, random: Random, tokens: Metadata | None = None) -> dict[str, StoredTensor]:
    D, V = s.width, size_of(qwen_vocabulary() if tokens is None else tokens)
    tensors = {
        "token_embd.weight": random.normal("token_embd", V, D, std=0.25 if s.tied else 1.0),
        "output_norm.weight": _gain("output_norm", D, 3.0, random),
    }
    if not s.tied:
        tensors["output.weight"] = random.matrix("output", V, D)
    for i in range(s.n_layer):
        tensors |= _text_block(f"blk.{i}", s, random)
    return tensors


def _text_block(name: str, s: QwenTextSpec, random: Random) -> dict[str, StoredTensor]:
    D, F, KV = s.width, s.mlp_width, s.width // s.n_head * s.n_head_kv
    tensors = {
        f"{name}.attn_norm.weight": _gain(f"{name}.attn_norm", D, 1.6, random),
        f"{name}.ffn_norm.weight": _gain(f"{name}.ffn_norm", D, 0.6, random),
    }
    for part, rows in (("attn_q", D), ("attn_k", KV), ("attn_v", KV)):
        tensors |= _affine(f"{name}.{part}", rows, D, random)
    for part, rows, columns in (("attn_output", D, D), ("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F)):
        tensors[f"{name}.{part}.weight"] = random.matrix(f"{name}.{part}", rows, columns)
    return tensors


def qwen_vision_metadata(s: QwenVisionSpec, text_width: int) -> Metadata:
    v = "clip.vision."
    kept: Metadata = {"clip.use_silu": True, v + "n_wa_pattern": s.pattern} if s.gated else {}
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "qwen2.5vl_merger" if s.gated else "qwen2vl_merger",
        v + "image_size": s.image_size,
        v + "patch_size": s.patch_size,
        v + "embedding_length": s.width,
        v + "feed_forward_length": s.mlp_width if s.gated else text_width,  # as converted: nobody may use the second
        v + "block_count": s.n_block,
        v + "projection_dim": text_width,
        v + "attention.head_count": s.n_head,
        v + "attention.layer_norm_epsilon": s.eps,
        v + "image_mean": CLIP_MEAN,
        v + "image_std": CLIP_STD,
        **kept,
    }


def qwen_vision_tensors(s: QwenVisionSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    D, P, M = s.width, s.patch_size, MERGE**2 * s.width
    tensors = {}
    for name in ("v.patch_embd.weight", "v.patch_embd.weight.1"):
        kernel = random.normal(name, D, 3, P, P, std=(6 * P * P) ** -0.5)
        tensors[name] = kernel.as_kind("F32")  # as converted, whatever the other matrices are
    tensors |= _norm("v.post_ln", s, 1.8, random)
    tensors |= _affine("mm.0", M, M, random) | _affine("mm.2", text_width, M, random)
    for i in range(s.n_block):
        tensors |= _vision_block(f"v.blk.{i}", s, random)
    return tensors


def _vision_block(name: str, s: QwenVisionSpec, random: Random) -> dict[str, StoredTensor]:
    D, F = s.width, s.mlp_width
    up, down = ("ffn_down", "ffn_up") if s.swapped else ("ffn_up", "ffn_down")
    tensors = _norm(f"{name}.ln1", s, 1.5, random) | _norm(f"{name}.ln2", s, 0.6, random)
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        tensors |= _affine(f"{name}.{part}", D, D, random)
    if s.gated:
        tensors |= _affine(f"{name}.ffn_gate", F, D, random)
    return tensors | _affine(f"{name}.{up}", F, D, random) | _affine(f"{name}.{down}", D, F, random)


def _norm(name: str, s: QwenVisionSpec, mean: float, random: Random) -> dict[str, StoredTensor]:
    """Make an RMSNorm (Qwen2.5-VL) or a LayerNorm, which has a bias."""
    gain = {f"{name}.weight": _gain(name, s.width, mean, random)}
    return gain if s.gated else gain | {f"{name}.bias": random.normal(f"{name}.bias", s.width, std=0.3)}


def _gain(name: str, width: int, mean: float, random: Random) -> StoredTensor:
    return random.normal(name, width, std=0.3 * mean, mean=mean)


def _affine(name: str, rows: int, columns: int, random: Random) -> dict[str, StoredTensor]:
    bias = random.normal(f"{name}.bias", rows, std=0.2)
    return {f"{name}.weight": random.matrix(name, rows, columns), f"{name}.bias": bias}
