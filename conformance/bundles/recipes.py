"""List the golden bundles: the pair, pictures and prompt of each, and the profiles that it is valid for.

There are four groups. The first covers LLaVA's architecture in float32 and with every stage: one pair for each option,
under the profile that the option distinguishes. The second does the same for other families (`families`). The third has
one pair for every type of tensor, on which the profiles do not differ (no class token, a feature layer that the file
names, a picture of the tower's size, a projector gain at which all kinds of GELU agree), so that engines of every
behaviour can use them. The last is one pair in which every matrix has another type.
"""

from collections.abc import Iterator
from dataclasses import replace

from llava_ref.gguf.types import TYPES

from ..pairs.pairs import TextSpec, VisionSpec
from ..pairs.random_blocks import KINDS
from .bundle import (
    ALIKE,
    HF,
    LLAMA_CPP,
    LLAVA,
    OWN,
    QUESTION,
    TALL,
    TEXT,
    THINNED,
    TINY,
    VISION,
    WIDE,
    YARN,
    Bundle,
    PictureSpec,
)  # fmt: skip
from .families import FAMILIES

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
    yield from FAMILIES
    yield from (_of_type(kind) for kind in KINDS)
    yield _mixed()
