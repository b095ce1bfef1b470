"""Make random pairs of Llama-3.2-Vision: a text GGUF of arch `mllama`, and its tower in another, or in the same file.

Keys, names and shapes are those that Ollama's converter writes (convert/convert_mllama.go). Sizes are odd and unequal
on purpose; gains of norms are far from 1, gates far from 0. D width, F MLP width, V vocabulary, P patch, K tiles, L
rows of a tile.
"""

from dataclasses import dataclass
from math import tanh
from pathlib import Path

import numpy as np

from .bpe_vocabulary import bpe_vocabulary
from .pairs import Kinds, Pair, TextSpec, stored, text_metadata, text_tensors
from .random_weights import Random, affine_norm
from .writing import Metadata, StoredTensor, Value, held, write

FIRST = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
PICTURE = "<|image|>"
NEW_ROWS = 8  # of token_embd, for tokens that cannot be said
CROSS = {"attn_q": "q_proj", "attn_k": "k_proj", "attn_v": "v_proj", "attn_output": "o_proj"}

# The format that meta-llama/Llama-3.2-11B-Vision-Instruct was trained with, without its system text.
TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' -}}
    {%- if message.content is string -%}{{- message.content -}}
    {%- else -%}
        {%- for part in message.content -%}{{- '<|image|>' if part.type == 'image' else part.text -}}{%- endfor -%}
    {%- endif -%}
    {{- '<|eot_id|>' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}
"""


@dataclass(frozen=True, slots=True)
class MllamaTextSpec(TextSpec):
    """A decoder some of whose layers look at pictures."""

    n_layer: int = 5
    looks: tuple[int, ...] = (1, 3)


@dataclass(frozen=True, slots=True)
class MllamaVisionSpec:
    """A tower over all tiles of a picture."""

    width: int = 40
    n_block: int = 4
    n_global: int = 2
    taken: tuple[int, ...] = (0, 2, 3)  # blocks whose states are features too
    n_head: int = 4
    mlp_width: int = 72
    image_size: int = 28
    patch_size: int = 7
    tiles: int = 4
    eps: float = 1e-5
    old: bool = False  # names of Ollama's first releases, with ffn_up and ffn_down by each other's
    kind: str = "F32"
    kinds: Kinds = ()


def build_mllama(
    folder: Path, text: MllamaTextSpec, vision: MllamaVisionSpec, seed: int = 0, *, one_file: bool = False
) -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, or all into the first.

    The same arguments give the same bytes."""
    random, path = Random(seed, 1.0), folder / "text.gguf"
    words = stored(mllama_text_tensors(text, random), text, seed)
    tower = stored(mllama_vision_tensors(vision, text.width, random), vision, seed)
    if one_file:
        write(path, mllama_text_metadata(text) | mllama_vision_metadata(vision, text.width), words | tower, text.kind)
        return Pair(path, path)
    pair = Pair(path, folder / "mmproj.gguf")
    write(pair.text, mllama_text_metadata(text), words, text.kind)
    write(pair.mmproj, mllama_vision_metadata(vision, text.width), tower, vision.kind)
    return pair


def mllama_vocabulary() -> Metadata:
    """Return the `tokenizer.` keys; the last token is a picture's."""
    ends = {"tokenizer.ggml.eos_token_id": FIRST.index("<|eot_id|>"), "tokenizer.ggml.add_bos_token": True}
    return {**bpe_vocabulary("llama-bpe", FIRST, [PICTURE], TEMPLATE), **ends}


def mllama_text_metadata(s: MllamaTextSpec) -> dict[str, Value]:
    keys = {key.replace("llama.", "mllama.", 1): value for key, value in text_metadata(s, mllama_vocabulary()).items()}
    return keys | {"general.architecture": "mllama", "mllama.attention.cross_attention_layers": list(s.looks)}


def mllama_text_tensors(s: MllamaTextSpec, random: Random) -> dict[str, StoredTensor]:
    tokens = mllama_vocabulary()
    tensors = text_tensors(s, random, tokens)
    V = tensors["output.weight"].shape[0] - 1  # no picture can be said
    tensors["output.weight"] = random.matrix("output", V, s.width)
    tensors["token_embd.weight"] = random.normal("token_embd", V + NEW_ROWS, s.width)
    for i in s.looks:
        for part, other in CROSS.items():
            tensors[f"blk.{i}.cross_attn_{other}.weight"] = tensors.pop(f"blk.{i}.{part}.weight")
        for part in ("q_norm", "k_norm"):
            gain = random.normal(f"blk.{i}.{part}", s.width // s.n_head, std=0.3, mean=1.5)
            tensors[f"blk.{i}.cross_attn_{part}.weight"] = gain
        for part in ("attn_gate", "mlp_gate"):
            tensors[f"blk.{i}.cross_attn_{part}"] = random.normal(f"blk.{i}.{part}", 1, std=0.3, mean=0.8)
    return tensors


def mllama_vision_metadata(s: MllamaVisionSpec, text_width: int) -> dict[str, Value]:
    v = "mllama.vision."
    return {
        "general.architecture": "mllama",
        v + "block_count": s.n_block,
        v + "global.block_count": s.n_global,
        v + "intermediate_layers_indices": list(s.taken),
        v + "embedding_length": s.width,
        v + "feed_forward_length": s.mlp_width,
        v + "attention.head_count": s.n_head,
        v + "attention.layer_norm_epsilon": s.eps,
        v + "image_size": s.image_size,
        v + "patch_size": s.patch_size,
        v + "max_num_tiles": s.tiles,
        v + "num_channels": 3,
        v + "projection_dim": text_width,
    }


def mllama_vision_tensors(s: MllamaVisionSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    D, P, K = s.width, s.patch_size, s.tiles
    L = (s.image_size // P) ** 2 + 1
    grids = 1 + sum(rows * columns <= K for rows in range(1, K + 1) for columns in range(1, K + 1))
    gate = 0.7
    tensors = {
        "v.patch_embd.weight": random.normal("v.patch_embd", D, 3, P, P, std=(3 * P * P) ** -0.5),
        "v.class_embd": random.normal("v.class_embd", D),
        "v.position_embd.weight": random.normal("v.position_embd", L, D),
        "v.position_embd.gate": _number(1 - tanh(gate)),
        "v.tile_position_embd.weight": random.normal("v.tile_position_embd", grids, K * L * D, std=0.5),
        "v.tile_position_embd.gate": _number(tanh(gate)),
        "mm.0.weight": random.matrix("mm.0", text_width, (1 + len(s.taken)) * D),
        "mm.0.bias": random.normal("mm.0.bias", text_width, std=0.1),
    }
    for i, place in enumerate(("pre", "post")):
        name = f"v.{place}_tile_position_embd"
        tensors[f"{name}.weight"] = random.normal(name, grids, K * D, std=0.5)
        tensors[f"{name}.gate"] = _number(tanh(0.5 + 0.4 * i))
        tensors |= affine_norm(f"v.{place}_ln", D, random)
    for i in range(s.n_block):
        tensors |= _block(f"v.blk.{i}", s, random)
    for i in range(s.n_global):
        tensors |= _block(f"v.global.blk.{i}", s, random)
        for j, part in enumerate(("attn_gate", "ffn_gate")):
            tensors[f"v.global.blk.{i}.{part}"] = _number(tanh(0.4 + 0.3 * j + 0.1 * i))
    return tensors


def _number(value: float) -> StoredTensor:
    return held(np.array([value], np.float32))


def _block(name: str, s: MllamaVisionSpec, random: Random) -> dict[str, StoredTensor]:
    D, F = s.width, s.mlp_width
    up, down = ("ffn_down", "ffn_up") if s.old else ("ffn_up", "ffn_down")
    matrices = {
        "attn_q": (D, D, random.qk),
        "attn_k": (D, D, random.qk),
        "attn_v": (D, D, 1.0),
        "attn_out" if s.old else "attn_output": (D, D, random.residual),
        up: (F, D, 1.0),
        down: (D, F, random.residual),
    }
    tensors = {f"{name}.{part}.weight": random.matrix(f"{name}.{part}", *of) for part, of in matrices.items()}
    for part in ("ln1", "ln2") if s.old else ("attn_norm", "ffn_norm"):
        tensors |= affine_norm(f"{name}.{part}", D, random)
    for part, rows in ((up, F), (down, D)):
        tensors[f"{name}.{part}.bias"] = random.normal(f"{name}.{part}.bias", rows, std=0.1)
    return tensors
