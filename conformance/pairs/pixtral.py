"""Make random pairs of Pixtral and Mistral Small 3.1: a text GGUF of arch `llama` with a BPE vocabulary, an mmproj with
projector `pixtral`.

Keys, names and shapes are those that llama.cpp's converter writes (conversion/llava.py, b11549). Sizes are odd and
unequal on purpose; gains of norms are far from 1.
D width, F MLP width, M middle of the projector, P patch, s patches a side of one row's square.
"""

from dataclasses import dataclass
from pathlib import Path

from llava_ref.chat.templates import PIXTRAL

from .bpe_vocabulary import bpe_vocabulary
from .pairs import CLIP_MEAN, CLIP_STD, Kinds, Pair, TextSpec, stored, text_metadata, text_tensors
from .random_weights import Random
from .writing import Metadata, StoredTensor, held, write

BREAK = "[IMG_BREAK]"
FIRST = ["<s>", "[INST]", "[/INST]", "[IMG]", BREAK, "[IMG_END]"]
END = "</s>"


@dataclass(frozen=True, slots=True)
class PixtralSpec:
    """A tower and its projector. `None` leaves the key out of the file."""

    width: int = 48
    n_block: int = 3
    n_head: int = 3  # of 16
    mlp_width: int = 68
    image_size: int = 112  # pixels of the longer side of the largest picture
    patch_size: int = 16
    middle: int = 56  # rows of mm.1
    merge: int | None = None  # s; Mistral Small 3.1: 2, with a norm and a matrix of the squares
    biases: bool = False  # of the projector
    eps: float = 1e-5
    use_gelu: bool = False  # in the tower, for SiLU
    kind: str = "F32"
    kinds: Kinds = ()


def pixtral_vocabulary(pre: str = "pixtral") -> Metadata:
    """Return the `tokenizer.` keys: about 400 tokens, the words of `vocabulary.WORDS` among them, and the template."""
    return {**bpe_vocabulary(pre, FIRST, [END], PIXTRAL), "tokenizer.ggml.add_bos_token": True}


def build_pixtral(folder: Path, text: TextSpec, vision: PixtralSpec, seed: int = 0, pre: str = "pixtral") -> Pair:
    """Write `text.gguf` and `mmproj.gguf` into `folder`, which must exist. The same arguments give the same bytes."""
    random, vocabulary = Random(seed, 1.0), pixtral_vocabulary(pre)
    pair = Pair(folder / "text.gguf", folder / "mmproj.gguf")
    tensors = text_tensors(text, random, vocabulary)
    write(pair.text, text_metadata(text, vocabulary), stored(tensors, text, seed), text.kind)
    of_break = tensors["token_embd.weight"].load()[FIRST.index(BREAK)]
    tensors = {**pixtral_tensors(vision, text.width, random), "v.token_embd.img_break": held(of_break)}
    write(pair.mmproj, pixtral_metadata(vision, text.width), stored(tensors, vision, seed), vision.kind)
    return pair


def pixtral_metadata(s: PixtralSpec, text_width: int) -> Metadata:
    v = "clip.vision."
    return {
        "general.architecture": "clip",
        "general.type": "mmproj",
        "clip.has_vision_encoder": True,
        "clip.projector_type": "pixtral",
        "clip.use_gelu" if s.use_gelu else "clip.use_silu": True,
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
        **({} if s.merge is None else {v + "spatial_merge_size": s.merge}),
    }


def pixtral_tensors(s: PixtralSpec, text_width: int, random: Random) -> dict[str, StoredTensor]:
    """Return the tower's tensors and the projector's, without the row of the break."""
    D, P, M = s.width, s.patch_size, s.middle
    tensors = {
        "v.patch_embd.weight": random.normal("v.patch_embd", D, 3, P, P, std=(3 * P * P) ** -0.5).as_kind("F32"),
        "v.pre_ln.weight": _gain("v.pre_ln", D, 1.3, random),
        "mm.1.weight": random.matrix("mm.1", M, D),
        "mm.2.weight": random.matrix("mm.2", text_width, M),
    }
    if s.biases:
        tensors["mm.1.bias"] = random.normal("mm.1.bias", M, std=0.2)
        tensors["mm.2.bias"] = random.normal("mm.2.bias", text_width, std=0.2)
    if s.merge is not None:
        tensors["mm.input_norm.weight"] = _gain("mm.input_norm", D, 1.8, random)
        tensors["mm.patch_merger.weight"] = random.matrix("mm.patch_merger", D, s.merge**2 * D)
    for i in range(s.n_block):
        tensors |= _block(f"v.blk.{i}", s, random)
    return tensors


def _block(name: str, s: PixtralSpec, random: Random) -> dict[str, StoredTensor]:
    D, F = s.width, s.mlp_width
    tensors = {f"{name}.ln1.weight": _gain(f"{name}.ln1", D, 1.5, random)}
    tensors[f"{name}.ln2.weight"] = _gain(f"{name}.ln2", D, 0.6, random)
    for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
        tensors[f"{name}.{part}.weight"] = random.matrix(f"{name}.{part}", D, D)
    for part, rows, columns in (("ffn_gate", F, D), ("ffn_up", F, D), ("ffn_down", D, F)):
        tensors[f"{name}.{part}.weight"] = random.matrix(f"{name}.{part}", rows, columns)
    return tensors


def _gain(name: str, width: int, mean: float, random: Random) -> StoredTensor:
    return random.normal(name, width, std=0.3 * mean, mean=mean)
