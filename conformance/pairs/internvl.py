"""Make random pairs of InternVL: a text GGUF of arch `qwen2` or `llama` with a BPE vocabulary, an mmproj with InternViT
and projector `internvl`.

Keys, names and shapes are those that llama.cpp's converter writes (conversion/intern_vision.py, b11549). Sizes are odd
and unequal on purpose. D width, P patch, V vocabulary.
"""

from dataclasses import dataclass
from pathlib import Path

from .bpe_vocabulary import bpe_vocabulary
from .gemma3 import SiglipSpec, siglip_block, siglip_metadata
from .pairs import Pair, TextSpec, stored, text_metadata, text_tensors
from .qwen2vl import QwenTextSpec, qwen_text_metadata, qwen_text_tensors
from .random_weights import Random, affine_norm
from .writing import Metadata, StoredTensor, write

IMAGENET_MEAN, IMAGENET_STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]
FIRST = ["<|endoftext|>", "<|im_start|>", "<img>", "</img>", "<IMG_CONTEXT>"]
END = "<|im_end|>"

# ChatML as OpenGVLab/InternVL3-1B-hf has it: a picture stands on a line of its own.
TEMPLATE = """\
{%- for message in messages -%}
    {{- '<|im_start|>' + message.role + '\\n' -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}
            {{- '<IMG_CONTEXT>\\n' if part.type == 'image' else part.text -}}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|im_start|>assistant\\n' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class InternVLSpec(SiglipSpec):
    """InternViT and InternVL's projector."""

    image_size: int = 28
    patch_size: int = 7
    middle: int = 56  # rows of mm.model.mlp.1
    most_tiles: int | None = 6  # None: no key
    least_tiles: int | None = 1
    biases: bool = True  # of queries, keys and values
    large: bool = False  # a block as InternViT-6B's: queries and keys are normed, all norms are RMS, without `biases`


def build_internvl(folder: Path, text: QwenTextSpec | TextSpec, vision: InternVLSpec, seed: int = 0) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random = Random(seed, 1.0)
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    if isinstance(text, TextSpec):
        tokens = internvl_vocabulary("smollm")
        keys, tensors = text_metadata(text, tokens), text_tensors(text, random, tokens)
    else:
        tokens = internvl_vocabulary("qwen2")
        keys, tensors = qwen_text_metadata(text, tokens), qwen_text_tensors(text, random, tokens)
    write(pair.text, keys, stored(tensors, text, seed), text.kind)
    tensors = stored(internvl_tensors(vision, text.width, random), vision, seed)
    write(pair.mmproj, internvl_metadata(vision, text.width), tensors, vision.kind)
    return pair


def internvl_vocabulary(pre: str) -> Metadata:
    """Return the `tokenizer.` keys: byte-level BPE whose rule for cutting is `pre`, ChatML's and pictures' tokens."""
    return bpe_vocabulary(pre, FIRST, [END], TEMPLATE)


def internvl_metadata(s: InternVLSpec, text_width: int) -> Metadata:
    v = "clip.vision."
    optional = {v + "preproc_min_tiles": s.least_tiles, v + "preproc_max_tiles": s.most_tiles}
    return {
        **siglip_metadata(s, text_width),
        "clip.projector_type": "internvl",
        v + "projector.scale_factor": s.merge,
        v + "image_mean": IMAGENET_MEAN,
        v + "image_std": IMAGENET_STD,
        **{key: value for key, value in optional.items() if value is not None},
    }


def internvl_tensors(s: InternVLSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    D, P, squares = s.width, s.patch_size, s.merge**2 * s.width
    tensors = {
        "v.class_embd": random.normal("v.class_embd", D),
        "v.patch_embd.weight": random.normal("v.patch_embd", D, 3, P, P, std=(3 * P * P) ** -0.5),
        "v.patch_embd.bias": random.normal("v.patch_embd.bias", D, std=0.2),
        "v.position_embd.weight": random.normal("v.position_embd", (s.image_size // P) ** 2 + 1, D, std=0.5),
        **affine_norm("mm.model.mlp.0", squares, random),
    }
    for i, rows, columns in ((1, s.middle, squares), (3, text_width, s.middle)):
        name = f"mm.model.mlp.{i}"
        tensors[f"{name}.weight"] = random.matrix(name, rows, columns)
        tensors[f"{name}.bias"] = random.normal(f"{name}.bias", rows, std=0.1)
    for i in range(s.n_block):
        tensors |= _block(f"v.blk.{i}", s, random)
    return tensors


def _block(name: str, s: InternVLSpec, random: Random) -> dict[str, StoredTensor]:
    unbiased = [f"attn_{part}" for part in "qkv"] * (not s.biases) + ["ln1", "ln2"] * s.large
    dropped = [f"{name}.{part}.bias" for part in unbiased]
    tensors = {key: tensor for key, tensor in siglip_block(name, s, random).items() if key not in dropped}
    for scale in ("ls1", "ls2"):
        tensors[f"{name}.{scale}.weight"] = random.normal(f"{name}.{scale}", s.width, std=0.3, mean=0.8)
    if s.large:
        for gain, mean in (("attn_q_norm", 1.3), ("attn_k_norm", 0.7)):
            tensors[f"{name}.{gain}.weight"] = random.normal(f"{name}.{gain}", s.width, std=0.3, mean=mean)
    return tensors
