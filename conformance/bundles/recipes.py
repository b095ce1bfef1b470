"""List the golden bundles: the pair, pictures and prompt of each, and the profiles that it is valid for.

There are eight groups. The first covers LLaVA's architecture in float32 and with every stage: one pair for each option,
under the profile that the option distinguishes. The second does the same for Gemma 3, the third for LLaVA-1.6, the
fourth for SmolVLM and Idefics3, the fifth for Qwen2-VL and Qwen2.5-VL, the sixth for InternVL. The seventh has one pair
for every type of tensor, on which the profiles do not differ (no class token, a feature layer that the file names, a
picture of the tower's size, a projector gain at which all kinds of GELU agree), so that engines of every behaviour can
use them. The last is one pair in which every matrix has another type.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from llava_ref.gguf.types import TYPES

from ..pairs.gemma3 import Gemma3Spec, SiglipSpec
from ..pairs.idefics3 import Idefics3Spec
from ..pairs.internvl import InternVLSpec
from ..pairs.pairs import TextSpec, VisionSpec
from ..pairs.qwen2vl import QwenTextSpec, QwenVisionSpec
from ..pairs.random_blocks import KINDS

EVERY_STAGE = ("*", "*kq_soft_max")
THINNED = (
    "vision.pixels", "vision.patch_embd", "vision.blk.*.layer_out", "projector.out", "embd", "blk.*.out", "result_*",
)  # fmt: skip
WORDS = ("what", "color", "is", "the", "red", "circle")
N_GREEDY = 6
ALIKE = ("llava", "hf", "llama.cpp")


@dataclass(frozen=True, slots=True)
class PictureSpec:
    """Describes a picture of a bundle. `bands`: 3, or 4 with transparency."""

    name: str
    height: int
    width: int
    bands: int = 3


@dataclass(frozen=True, slots=True)
class Bundle:
    """Describes everything that a bundle is made from."""

    name: str
    about: str
    text: TextSpec | Gemma3Spec | QwenTextSpec
    vision: VisionSpec | SiglipSpec | QwenVisionSpec
    pictures: tuple[PictureSpec, ...]
    prompt: str
    profiles: tuple[str, ...]
    """The profiles that its numbers are valid for, all of which give the same."""
    stages: tuple[str, ...] = EVERY_STAGE
    seed: int = 0


TEXT = TextSpec(width=24, n_layer=2, n_head=4, n_head_kv=2, mlp_width=40, context=128, words=WORDS)
VISION = VisionSpec(width=20, n_block=2, n_head=2, mlp_width=36, image_size=15, patch_size=5, middle=28)
YARN = replace(TEXT, rope_scaling="yarn", rope_base=500.0, original_context=32)
WIDE, TALL = PictureSpec("wide.png", 27, 61), PictureSpec("tall.png", 53, 22)
TINY, OWN = PictureSpec("tiny.png", 2, 3), PictureSpec("own.png", 15, 15)
QUESTION = "what color<image>\nis red"
LLAVA, HF, LLAMA_CPP = ("llava",), ("hf",), ("llama.cpp",)

ARCHITECTURE = (
    Bundle(
        "llava-wide",
        "grouped queries; a wide picture, padded to a square with the mean colour and then resized",
        TEXT, VISION, (WIDE,), QUESTION, LLAVA,
    ),
    Bundle(
        "hf-wide",
        "the same files; the picture cut to a square by its shortest side, the text tokenised as a whole",
        TEXT, VISION, (WIDE,), QUESTION, HF,
    ),
    Bundle(
        "llama.cpp-wide",
        "the same files; the picture resized and then padded, the class token behind the patches, one block of the "
        "tower less, GELU by tanh, a space before every piece of text",
        TEXT, VISION, (WIDE,), QUESTION, LLAMA_CPP,
    ),
    Bundle(
        "multi-query-tied",
        "one head of keys and values, the output tied to the embedding, biases; a tall picture; a letter that is bytes",
        replace(TEXT, n_head_kv=1, tied=True, biases=True), VISION, (TALL,), "the red é<image>what", LLAVA, seed=1,
    ),
    Bundle(
        "rope-linear-eps",
        "linear rope scaling; both epsilons 0.05, large enough to see; a picture of 2 x 3 pixels",
        replace(TEXT, rope_scaling="linear", eps=0.05, tied=True), replace(VISION, eps=0.05), (TINY,),
        "is<image> red", LLAVA, seed=2,
    ),
    Bundle(
        "rope-yarn-gelu",
        "YaRN rope scaling, another rope base; GELU in the tower; a picture of the tower's own size",
        YARN, replace(VISION, use_gelu=True), (OWN,), QUESTION, LLAVA, seed=3,
    ),
    Bundle(
        "rope-divisors-two-pictures",
        "as many heads of keys as of queries, rope divisors and base as in Llama 3; the tower's first block only, and "
        "a last norm that is not applied; two pictures, one behind the other",
        replace(TEXT, rope_divisors=True, rope_base=5e5, n_head_kv=4, tied=True),
        replace(VISION, feature_layer=1, post_ln=True), (TALL, OWN), "<image><image>the circle</s>is", LLAVA, seed=4,
    ),
    Bundle(
        "window",
        "a sliding window of 9 positions, which is honoured; patches of 3 pixels",
        replace(TEXT, window=9, tied=True), replace(VISION, image_size=12, patch_size=3),
        (PictureSpec("own.png", 12, 12),), "what<image>color", LLAVA, seed=5,
    ),
    Bundle(
        "no-class-token-swapped",
        "no class token and no first norm; the tower's MLP matrices by each other's names, as old converters wrote "
        "them; all profiles agree on it",
        TEXT, replace(VISION, class_token=False, pre_ln=False, swapped=True, feature_layer=2, projector_gain=16.0),
        (OWN,), "what color is<image></s>", ALIKE, seed=6,
    ),
    Bundle(
        "llama.cpp-tall",
        "a picture with transparency, which is dropped; the tower's last norm applied, GELU by tanh in the tower, the "
        "window ignored, a space behind a control token; one head of keys and values, biases, YaRN",
        replace(YARN, n_head_kv=1, biases=True, window=9), replace(VISION, post_ln=True, use_gelu=True, n_block=3),
        (replace(TALL, bands=4),), "the</s>red<image>what", LLAMA_CPP, seed=7,
    ),
)  # fmt: skip


GEMMA = Gemma3Spec(width=20, n_layer=6, head_size=6, mlp_width=28, window=3, rope_factor=8.0)
SIGLIP = SiglipSpec(width=20, n_block=2, n_head=2, mlp_width=28, image_size=20, patch_size=5)
TURN = "<bos><start_of_turn>user\n{}<end_of_turn>\n<start_of_turn>model\n"

GEMMA3 = (
    Bundle(
        "gemma3-hf",
        "Gemma 3: grouped queries, five local blocks and a global one with linear rope scaling, a window smaller than "
        "a picture; two pictures, wide and tall, stretched; line feeds around their markers",
        GEMMA, SIGLIP, (WIDE, TALL), TURN.format("what<image>is <image>\n\nred"), HF, seed=9,
    ),
    Bundle(
        "gemma3-llama.cpp",
        "Gemma 3: one head of keys and values, another period, no rope scaling; a wide picture first, fitted and "
        "centred on black; no line feeds around its markers; one row for a square of 4 x 4 patches",
        replace(GEMMA, n_head_kv=1, pattern=3, n_layer=4, rope_factor=None, rope_base_swa=500.0),
        replace(SIGLIP, merge=4), (WIDE,), TURN.format("<image>what is"), LLAMA_CPP, seed=10,
    ),
)  # fmt: skip


ANYRES = replace(VISION, image_size=12, patch_size=4, sizes=((12, 24), (24, 12), (24, 24)), feature_layer=1)

LLAVA_NEXT = (
    Bundle(
        "llava-1.6-hf",
        "LLaVA-1.6: a wide picture, its overview and its tiles, joined to one grid without its padding, each line of "
        "it ended by a newline row",
        TEXT, ANYRES, (WIDE,), "what<image>\nis red", HF, seed=11,
    ),
    Bundle(
        "llava-1.6-llama.cpp",
        "the same files; tiles one after the other and the overview last, without newline rows; a picture smaller than "
        "a tile is not cut",
        TEXT, ANYRES, (WIDE, TINY), "what<image>is <image>\nred", LLAMA_CPP, seed=11,
    ),
)  # fmt: skip


TILED = Idefics3Spec(
    width=16, n_block=1, n_head=2, mlp_width=24, image_size=8, patch_size=2, merge=2, longest=16
)  # fmt: skip
SMALL = replace(TEXT, width=16, mlp_width=24, tied=True)
SMOL = "<|im_start|>User:{}<end_of_utterance>\nAssistant:"

IDEFICS3 = (
    Bundle(
        "idefics3-hf",
        "SmolVLM and Idefics3: grouped queries, a byte-level BPE vocabulary; two pictures, wide and tall, in tiles "
        "that the text names by row and column, an overview behind them; the tall one resized vertically first",
        SMALL, TILED, (WIDE, TALL), SMOL.format("<image>what\n\nis 12<image>"), HF, seed=12,
    ),
    Bundle(
        "idefics3-llama.cpp",
        "SmolVLM and Idefics3: one head of keys and values, squares of 4 x 4 patches; a longer side of a tile and a "
        "half, each side filled by itself; a wide picture first",
        replace(SMALL, n_head_kv=1), replace(TILED, merge=4, longest=12), (WIDE,), SMOL.format("<image>what is"),
        LLAMA_CPP, seed=14,
    ),
)  # fmt: skip


QWEN = QwenTextSpec(width=24, n_layer=2, n_head=2, n_head_kv=1, mlp_width=40, context=128, tied=True)
WINDOWED = QwenVisionSpec(width=16, n_block=2, n_head=2, mlp_width=24, patch_size=16, image_size=32)
PLAIN = QwenVisionSpec(gated=False, width=16, n_block=1, n_head=2, mlp_width=32, patch_size=6, image_size=24)
EIGHT = PictureSpec("wide.png", 50, 131)  # 2 x 4 rows, in two windows

QWEN2VL = (
    Bundle(
        "qwen2.5vl-hf",
        "Qwen2.5-VL: one block of two windows and one that sees everything, RMSNorm and a gated MLP in the tower; a "
        "wide picture, stretched; GELU by erf in the merger",
        QWEN, WINDOWED, (EIGHT,), "<|im_start|>what<image>is 12<|im_end|>", HF, seed=21,
    ),
    Bundle(
        "qwen2.5vl-llama.cpp",
        "the same files; the picture fitted and centred on black, GELU by tanh in the merger",
        QWEN, WINDOWED, (EIGHT,), "<|im_start|>what<image>is 12<|im_end|>", LLAMA_CPP, seed=21,
    ),
    Bundle(
        "qwen2vl-hf",
        "Qwen2-VL: LayerNorm and quick GELU in the tower; a wide picture and one of 2 x 3 pixels, whose rows have "
        "positions of their grids",
        replace(QWEN, n_head_kv=2), PLAIN, (WIDE, TINY), "<image>what\n<image>is", HF, seed=36,
    ),
    Bundle(
        "qwen2vl-llama.cpp",
        "Qwen2-VL: the text's epsilon, 0.05 in the file, taken as 0; the tower's MLP matrices by each other's names; a "
        "tall picture, at a size of at least eight rows",
        replace(QWEN, eps=0.05), replace(PLAIN, swapped=True), (TALL,), "the color<image>is", LLAMA_CPP,
        seed=18,
    ),
)  # fmt: skip


INTERN_TEXT = replace(QWEN, sections=())
INTERN = InternVLSpec(
    width=16, n_block=1, n_head=2, mlp_width=24, image_size=8, patch_size=2, middle=20, most_tiles=3
)  # fmt: skip
CHAT = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"

INTERNVL = (
    Bundle(
        "internvl-hf",
        "InternVL: a decoder of qwen2, layer scale in the tower; a wide picture stretched over two tiles, an overview "
        "behind them, and one that is a tile by itself; the class token first, GELU by erf",
        INTERN_TEXT, INTERN, (WIDE, PictureSpec("square.png", 9, 9)), CHAT.format("<image>\nwhat is <image>"), HF,
        seed=43,
    ),
    Bundle(
        "internvl-llama.cpp",
        "InternVL: a decoder of llama, a tower without biases of queries, keys and values; a tall picture fitted into "
        "three tiles on black, an overview behind them, and one that a tile holds; the class token last, GELU by tanh",
        SMALL, replace(INTERN, biases=False), (TALL, TINY), CHAT.format("<image>\nwhat is <image>"), LLAMA_CPP, seed=42,
    ),
)  # fmt: skip


def _of_type(kind: str) -> Bundle:
    """Make the bundle of one type, with one block in each network.

    Rows are as short as the type's blocks allow, two of them if they are small, to keep the set small."""
    per_block = TYPES[kind].weights
    size = {1: 48, 256: 256}.get(per_block, 64)
    text = replace(TEXT, width=size, n_layer=1, n_head=8, n_head_kv=1, mlp_width=size, tied=True, kind=kind)
    vision = VisionSpec(
        width=min(size, 64), n_block=1, n_head=4, mlp_width=128, image_size=8, patch_size=4, middle=64,
        class_token=False, feature_layer=1, projector_gain=16.0, kind=kind,
    )  # fmt: skip
    if per_block < 256:
        return _alike(f"type-{kind.lower()}", f"every matrix {kind}", text, vision)
    vision = replace(
        vision, width=32, mlp_width=256, middle=32, kind="Q8_0", kinds=(("v.blk.*.ffn_down.weight", kind),)
    )
    about = f"every matrix {kind}; of the tower, whose other rows are too short for it, ffn_down, the rest Q8_0"
    return _alike(f"type-{kind.lower()}", about, text, vision)


def _alike(name: str, about: str, text: TextSpec, vision: VisionSpec) -> Bundle:
    """Make a bundle on which the profiles agree."""
    picture = PictureSpec("own.png", vision.image_size, vision.image_size)
    return Bundle(name, about, text, vision, (picture,), "what is<image></s><s>", ALIKE, THINNED, seed=8)


MIXED_TEXT = {
    "attn_q": "Q3_K", "attn_k": "Q6_K", "attn_v": "Q5_K", "attn_output": "IQ3_S",
    "ffn_gate": "IQ1_S", "ffn_up": "TQ2_0", "ffn_down": "IQ2_XXS",
}  # fmt: skip
MIXED_TOWER = {
    "v.blk.0.attn_q": "IQ2_S", "v.blk.0.attn_k": "IQ3_XXS", "v.blk.0.attn_v": "Q4_K", "v.blk.0.attn_out": "IQ2_XS",
    "v.blk.0.ffn_up": "TQ1_0", "v.blk.0.ffn_down": "IQ1_M", "mm.0": "IQ4_XS", "mm.2": "Q2_K",
}  # fmt: skip


def _mixed() -> Bundle:
    """Make the bundle with all fifteen types of 256-weight blocks, in the tower's attention and MLP too."""
    spec = _of_type("Q2_K")
    assert isinstance(spec.text, TextSpec) and isinstance(spec.vision, VisionSpec)
    text = replace(spec.text, kinds=tuple((f"blk.0.{part}.weight", kind) for part, kind in MIXED_TEXT.items()))
    kinds = tuple((f"{name}.weight", kind) for name, kind in MIXED_TOWER.items())
    vision = replace(spec.vision, width=256, mlp_width=512, middle=256, kinds=kinds)
    return _alike("type-mixed", "every matrix of another type; a tower of blocks of 256", text, vision)


def bundles() -> Iterator[Bundle]:
    """Yield all bundles, in the order of the manifest."""
    yield from ARCHITECTURE
    yield from GEMMA3
    yield from LLAVA_NEXT
    yield from IDEFICS3
    yield from QWEN2VL
    yield from INTERNVL
    yield from (_of_type(kind) for kind in KINDS)
    yield _mixed()
