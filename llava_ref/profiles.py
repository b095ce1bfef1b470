"""The quirks of LLaVA's implementations, one table, and the profiles that choose a value for each.

A quirk is one point on which implementations differ; a profile is a named choice of all of them, made once at load.
Sources: `llava` is haotian-liu/LLaVA v1.2.2 with CLIP as transformers runs it; `hf` is transformers' own processor and
model, release 5.24; `llama.cpp` is tools/mtmd of release b10605 (clip.cpp, models/llava.cpp, mtmd-image.cpp), unchanged
up to b11739.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from .errors import ParameterError
from .quirk import ANYRES, ATTENTION, DECODER, NAMED_TILES, NAMES, PICTURE, TOKENS, TOWER, Quirk, quirk

Alpha = Literal["convert", "white", "drop"]
Exif = Literal["ignore", "apply"]
ImageOrder = Literal["first", "template", "given"]


@dataclass(frozen=True, slots=True)
class Quirks:
    """One value per quirk; the defaults are profile `llava`. Each row: profiles `llava`, `hf`, `llama.cpp`; values."""

    class_token: Literal["first", "last"] = quirk(
        "the place of the class token",
        TOWER,
        ("first", "first", "last"),
        {
            "first": "puts the class token before the patches and takes rows 1..N",
            "last": "puts the class token after the patches and still takes rows 1..N, so patch 0 is lost and every "
            "patch has its neighbour's position",
        },
    )
    vit_layers: Literal["stored", "one-less"] = quirk(
        "how many blocks of the tower are run",
        TOWER,
        ("stored", "stored", "one-less"),
        {
            "stored": "runs every stored block of the tower",
            "one-less": "runs one block of the tower less than the file says",
        },
        where="in files without `clip.vision.feature_layer`",
    )
    post_ln: Literal["skip", "apply"] = quirk(
        "the norm after the tower",
        TOWER,
        ("skip", "skip", "apply"),
        {"skip": "leaves out the norm after the tower", "apply": "applies the norm after the tower"},
        where="in files with `v.post_ln`",
    )
    gelu: Literal["erf", "tanh"] = quirk(
        "the form of GELU",
        TOWER,
        ("erf", "erf", "tanh"),
        {"erf": "computes GELU exactly, by the error function", "tanh": "approximates GELU by tanh"},
        where="in a tower with `clip.use_gelu` and in the projector",
    )
    square: Literal["pad-resize", "crop", "resize-pad"] = quirk(
        "how a picture is padded, or cut, to a square",
        PICTURE,
        ("pad-resize", "crop", "resize-pad"),
        {
            "pad-resize": "pads a picture to a square with the mean colour and then resizes it",
            "crop": "resizes a picture's shortest side and cuts out the centre",
            "resize-pad": "resizes a picture to fit and then pads it to a square",
        },
    )
    fit: Literal["stretch", "letterbox"] = quirk(
        "how a picture takes the shape of the tower's input",
        PICTURE,
        ("stretch", "stretch", "letterbox"),
        {
            "stretch": "stretches a picture to the shape that the tower takes",
            "letterbox": "keeps a picture's aspect and centres it on black",
        },
        where="in families that do not pad with their mean colour",
    )
    resize_order: Literal["pillow", "horizontal"] = quirk(
        "the order of a resize's two passes",
        PICTURE,
        ("pillow", "pillow", "horizontal"),
        {
            "pillow": "resizes a picture that shrinks in height above all vertically first, as Pillow 13 does",
            "horizontal": "resizes every picture horizontally first",
        },
        where=NAMED_TILES,
    )
    tile_grid: Literal["aspect", "sides"] = quirk(
        "how many tiles a picture fills",
        (*PICTURE, *TOKENS),
        ("aspect", "aspect", "sides"),
        {
            "aspect": "makes a picture's longer side fill whole tiles, and the shorter one by the aspect once more",
            "sides": "makes each side of a picture fill whole tiles by itself",
        },
        where=f"{NAMED_TILES}, if a picture's longer side is no multiple of a tile's",
    )
    lone_tile: Literal["overview", "both"] = quirk(
        "what is seen of a picture of one tile",
        (*PICTURE, *TOKENS),
        ("overview", "overview", "both"),
        {
            "overview": "gives a picture of one tile its overview alone",
            "both": "gives a picture of one tile the tile and an overview",
        },
        where=NAMED_TILES,
    )
    longest_edge: Literal["fourfold", "own"] = quirk(
        "the size at which a picture is cut into tiles",
        (*PICTURE, *TOKENS),
        ("fourfold", "fourfold", "own"),
        {
            "fourfold": "gives a picture four tiles along its longer side",
            "own": "keeps a picture near its own size: bicubic, its aspect kept, centred on black in whole tiles; the "
            "overview is stretched from the source",
        },
        where=f"{NAMED_TILES} without `clip.vision.preproc_image_size`",
    )
    picture_size: Literal["processor", "mtmd"] = quirk(
        "the size at which a picture of free size is seen",
        (*PICTURE, *TOKENS),
        ("processor", "processor", "mtmd"),
        {
            "processor": "rounds a picture's sides in float64, halves to even, to 4 to 16,384 squares in all",
            "mtmd": "rounds a picture's sides in float32, halves away from zero, to 8 to 4,096 squares in all",
        },
        where="in files of projectors `qwen2vl_merger` and `qwen2.5vl_merger`",
    )
    tiling: Literal["always", "larger"] = quirk(
        "which pictures are cut into tiles",
        (*PICTURE, *TOKENS),
        ("always", "always", "larger"),
        {
            "always": "cuts every picture into tiles, at a size chosen in float64",
            "larger": "cuts only pictures larger than the tower's input into tiles, at a size chosen in float32",
        },
        where=ANYRES,
    )
    overview: Literal["first", "last"] = quirk(
        "the place of the overview among the tiles",
        (*PICTURE, "embd"),
        ("first", "first", "last"),
        {"first": "puts a picture's overview before its tiles", "last": "puts a picture's overview after its tiles"},
        where=ANYRES,
    )
    tiles: Literal["joined", "apart"] = quirk(
        "how the rows of tiles stand in the sequence",
        (*TOKENS, "embd"),
        ("joined", "joined", "apart"),
        {
            "joined": "joins a picture's tiles to one grid of rows, leaves out its padding and ends each line by a "
            "newline row",
            "apart": "puts the rows of a picture's tiles one tile after the other, with padding, without newline rows",
        },
        where=ANYRES,
    )
    exif: Exif = quirk(
        "the picture's EXIF orientation",
        PICTURE,
        ("ignore", "apply", "ignore"),
        {
            "ignore": "ignores the picture's EXIF orientation",
            "apply": "turns the picture as its EXIF orientation says",
        },
    )
    alpha: Alpha = quirk(
        "transparency",
        PICTURE,
        ("convert", "white", "drop"),
        {
            "convert": 'takes the colours stored under transparency, as Pillow\'s `convert("RGB")` does',
            "white": "lays transparent pictures over white",
            "drop": "drops the alpha channel, as stb_image does",
        },
    )
    text_pieces: Literal["separate", "whole", "separate-prefixed"] = quirk(
        "how the text around pictures is tokenised",
        TOKENS,
        ("separate", "whole", "separate-prefixed"),
        {
            "separate": "tokenises each piece of text around pictures by itself",
            "whole": "tokenises the whole prompt at once",
            "separate-prefixed": "tokenises each piece of text around pictures by itself, and puts a space (SPM's "
            "prefix) before text that follows a control token",
        },
    )
    image_order: ImageOrder = quirk(
        "where a message's pictures stand",
        TOKENS,
        ("first", "template", "given"),
        {
            "first": "puts a message's pictures before its texts, each on a line of its own",
            "template": "leaves the order of pictures and texts to the chat template",
            "given": "keeps pictures and texts in the order given, without line feeds around pictures",
        },
    )
    image_newlines: Literal["double", "none"] = quirk(
        "line feeds around a picture's markers",
        TOKENS,
        ("double", "double", "none"),
        {
            "double": "puts two line feeds before and after a picture's markers",
            "none": "puts no line feeds around a picture's markers",
        },
        where="in Gemma 3",
    )
    # llama.cpp reads the keys of the next three in other architectures only. YaRN's are also in transformers'
    # configuration, and llama.cpp's converter writes them.
    window: Literal["honour", "ignore"] = quirk(
        "the sliding window",
        DECODER,
        ("honour", "honour", "ignore"),
        {
            "honour": "applies the sliding window that the file asks for",
            "ignore": "ignores the sliding window that the file asks for",
        },
        where="in files of the llama architecture that have one (Mistral)",
    )
    attention_scale: Literal["honour", "ignore"] = quirk(
        "the scale of attention",
        DECODER,
        ("honour", "honour", "ignore"),
        {
            "honour": "scales attention by what the file says",
            "ignore": "scales attention by 1 / sqrt(head size), whatever the file says",
        },
        where="in files with `llama.attention.scale`",
    )
    text_eps: Literal["file", "zero"] = quirk(
        "the epsilon of the decoder's norms",
        (*DECODER, "result_norm"),
        ("file", "file", "zero"),
        {
            "file": "takes the epsilon of the decoder's norms from the file",
            "zero": "adds nothing to the mean square in the decoder's norms",
        },
        where="in files of the qwen2vl architecture",
    )
    yarn_keys: Literal["honour", "ignore"] = quirk(
        "YaRN's ramp and length",
        DECODER,
        ("honour", "honour", "ignore"),
        {
            "honour": "takes YaRN's ramp and length from the file",
            "ignore": "keeps YaRN's ramp and length at their defaults, whatever the file says",
        },
        where="in files with `yarn_beta_fast`, `yarn_beta_slow` or `yarn_attn_factor`",
    )
    # An answer after EOS begins after the end of a text, which LLaVA's own checkpoints never ask for.
    end_token: Literal["leave", "append"] = quirk(
        "EOS after a prompt",
        TOKENS,
        ("leave", "append", "append"),
        {"leave": "puts no EOS after a prompt", "append": "puts EOS after a prompt, as the vocabulary asks"},
        where="in files with `add_eos_token` true",
    )
    # llama.cpp's --cache-type-k and --cache-type-v, and --flash-attn.
    kv_cache: Literal["f32", "f16"] = quirk(
        "the type of the cache",
        ATTENTION,
        ("f32", "f32", "f16"),
        {"f32": "keeps keys and values in float32", "f16": "keeps keys and values in float16"},
        where="in precision `ggml`",
    )
    flash_attention: Literal["off", "on"] = quirk(
        "flash attention's rounding",
        ATTENTION,
        ("off", "off", "on"),
        {"off": "computes attention step by step", "on": "computes attention by ggml's fused operation"},
        where="in precision `ggml`",
    )


QUIRKS: Mapping[str, Quirk] = {field.name: field.metadata["quirk"] for field in fields(Quirks)}
PROFILES: Mapping[str, Quirks] = {
    profile: Quirks(**{name: row.profiles[profile] for name, row in QUIRKS.items()})  # type: ignore[arg-type]
    for profile in NAMES
}


def resolve(profile: str, overrides: Mapping[str, str] | None = None) -> Quirks:
    """Return the quirks of `profile` with `overrides`. Raises ParameterError for an unknown profile, quirk or value."""
    if profile not in PROFILES:
        raise ParameterError("profile", repr(profile), f"unknown, expected one of {', '.join(PROFILES)}")
    for name, value in (overrides or {}).items():
        if name not in QUIRKS:
            raise ParameterError("quirk", repr(name), f"unknown, expected one of {', '.join(QUIRKS)}")
        if value not in QUIRKS[name].values:
            raise ParameterError("quirk", name, f"{value!r} is not one of {', '.join(QUIRKS[name].values)}")
    return replace(PROFILES[profile], **dict(overrides or {}))  # type: ignore[arg-type]


def describe(quirks: Quirks) -> dict[str, str]:
    """Return {quirk: value} in the order of the table."""
    return {name: getattr(quirks, name) for name in QUIRKS}
