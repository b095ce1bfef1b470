"""List the golden bundles of families other than LLaVA-1.5, each in float32 and with every stage."""

from dataclasses import replace

from ..pairs.gemma3 import Gemma3Spec, SiglipSpec
from ..pairs.idefics3 import Idefics3Spec
from ..pairs.internvl import InternVLSpec
from ..pairs.mllama import MllamaTextSpec, MllamaVisionSpec
from ..pairs.pixtral import PixtralSpec
from ..pairs.qwen2vl import QwenTextSpec, QwenVisionSpec
from .bundle import HF, LLAMA_CPP, QUESTION, TALL, TEXT, THINNED, TINY, VISION, WIDE, Bundle, PictureSpec

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


SQUARES = replace(VISION, width=8, n_head=1, mlp_width=12, middle=12, image_size=24, patch_size=1, n_block=1)

PROJECTORS = (
    Bundle(
        "yi-vl-llama.cpp",
        "Yi-VL: a LayerNorm behind each of the projector's matrices; a wide picture",
        replace(TEXT, tied=True), replace(VISION, norms=True), (WIDE,), QUESTION, LLAMA_CPP, seed=51,
    ),
    Bundle(
        "mobilevlm-v2-llama.cpp",
        "MobileVLM V2: averages of 2 x 2 patches and a convolution over their neighbours; 24 patches a side, the only "
        "number that llama.cpp runs; no weights of attention",
        replace(TEXT, width=16, n_layer=1, mlp_width=24, context=256, tied=True),
        replace(SQUARES, mobile="ldpv2", feature_layer=1), (TALL,), "is<image>red", LLAMA_CPP,
        (*THINNED, "projector.*"), seed=52,
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


PIXTRAL_TOWER = PixtralSpec(width=16, n_block=2, n_head=2, mlp_width=24, image_size=40, patch_size=8, middle=20)
MERGED = replace(PIXTRAL_TOWER, n_block=1, image_size=30, patch_size=5, merge=2, biases=True)

PIXTRAL = (
    Bundle(
        "pixtral-hf",
        "Pixtral: rope by row and column; a wide picture, shrunk and stretched to whole squares, and one of a single "
        "square, whose lines end by tokens; GELU by erf in the projector",
        SMALL, PIXTRAL_TOWER, (WIDE, TINY), "[INST]<image>what is<image>[/INST]", HF, seed=51,
    ),
    Bundle(
        "pixtral-llama.cpp",
        "the same files; lines end by rows of the picture, which is fitted and centred on black, the small one in at "
        "least eight squares; GELU by tanh in the projector",
        SMALL, PIXTRAL_TOWER, (WIDE, TINY), "[INST]<image>what is<image>[/INST]", LLAMA_CPP, seed=51,
    ),
    Bundle(
        "mistral-small-hf",
        "Mistral Small 3.1: a norm and a matrix that merge squares of 2 x 2 patches, a projector with biases; a tall "
        "picture",
        replace(SMALL, n_head_kv=1), MERGED, (TALL,), "[INST]what color<image>[/INST]", HF, seed=53,
    ),
    Bundle(
        "mistral-small-llama.cpp",
        "the same files; the picture fitted and centred on black, lines that end by rows",
        replace(SMALL, n_head_kv=1), MERGED, (TALL,), "[INST]what color<image>[/INST]", LLAMA_CPP, seed=53,
    ),
)  # fmt: skip

MLLAMA_TEXT = MllamaTextSpec(width=16, n_layer=3, n_head=4, n_head_kv=2, mlp_width=24, context=128, looks=(1,))
MLLAMA_TOWER = MllamaVisionSpec(
    width=16, n_block=2, n_global=1, taken=(0, 1), n_head=2, mlp_width=24, image_size=8, patch_size=4
)  # fmt: skip

MLLAMA = (
    Bundle(
        "llama-3.2-vision-hf",
        "Llama-3.2-Vision: a layer that looks at pictures, a tower over tiles with gated blocks and states of two "
        "blocks; a wide picture, and a tall one and a tiny one that are seen together",
        MLLAMA_TEXT, MLLAMA_TOWER, (WIDE, TALL, TINY), "what<image> is<image><image>red", HF, seed=61,
    ),
)  # fmt: skip

FAMILIES = (*GEMMA3, *LLAVA_NEXT, *PROJECTORS, *IDEFICS3, *QWEN2VL, *INTERNVL, *PIXTRAL, *MLLAMA)
