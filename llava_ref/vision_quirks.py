"""The quirks of a picture and its tower: the first part of the table in `profiles`, which names the sources."""

from dataclasses import dataclass
from typing import Literal

from .quirk import ANYRES, INTERNVL, MLLAMA, NAMED_TILES, PICTURE, TILES, TOKENS, TOWER, quirk

Alpha = Literal["convert", "white", "drop"]
Exif = Literal["ignore", "apply"]


@dataclass(frozen=True, slots=True)
class VisionQuirks:
    """One value per quirk, as in `profiles.Quirks`."""

    class_token: Literal["first", "last"] = quirk(
        "the place of the class token",
        TOWER,
        ("first", "first", "last"),
        {
            "first": "puts the class token before the patches",
            "last": "puts the class token after the patches, so every patch has its neighbour's position; LLaVA-1.5 "
            "and 1.6 still take rows 1..N, so patch 0 is lost",
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
    tower_states: Literal["before", "after"] = quirk(
        "which states of the tower are features too",
        ("vision.features", "projector."),
        ("before", "after", "before"),
        {
            "before": "takes the states that the named blocks are given",
            "after": "takes the states that the named blocks make, as transformers 5.24 does",
        },
        where=MLLAMA,
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
        where=f"{NAMED_TILES}, and {INTERNVL}",
    )
    tile_grid: Literal["aspect", "sides"] = quirk(
        "how many tiles a picture fills",
        TILES,
        ("aspect", "aspect", "sides"),
        {
            "aspect": "makes a picture's longer side fill whole tiles, and the shorter one by the aspect once more",
            "sides": "makes each side of a picture fill whole tiles by itself",
        },
        where=f"{NAMED_TILES}, if a picture's longer side is no multiple of a tile's",
    )
    lone_tile: Literal["overview", "both"] = quirk(
        "what is seen of a picture of one tile",
        TILES,
        ("overview", "overview", "both"),
        {
            "overview": "gives a picture of one tile its overview alone",
            "both": "gives a picture of one tile the tile and an overview",
        },
        where=f"{NAMED_TILES}, and {INTERNVL}",
    )
    tile_shape: Literal["aspect", "pixels"] = quirk(
        "how many rows and columns of tiles a picture fills",
        TILES,
        ("aspect", "aspect", "pixels"),
        {
            "aspect": "fills the tiles whose aspect is closest to a picture's",
            "pixels": "fills the tiles that keep most of a picture's pixels",
        },
        where=f"in files {INTERNVL}",
    )
    longest_edge: Literal["fourfold", "own"] = quirk(
        "the size at which a picture is cut into tiles",
        TILES,
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
        (*PICTURE, *TOWER, *TOKENS),
        ("processor", "processor", "mtmd"),
        {
            "processor": "rounds a picture's sides in float64, halves to even, to 4 to 16,384 squares in all; "
            "Pixtral's up, of a picture shrunk to `clip.vision.image_size`",
            "mtmd": "rounds a picture's sides in float32, halves away from zero, to 8 to 4,096 squares in all "
            "(Pixtral: 1,024)",
        },
        where="in files of projectors `qwen2vl_merger`, `qwen2.5vl_merger` and `pixtral`",
    )
    line_breaks: Literal["tokens", "rows"] = quirk(
        "what ends a line of a picture",
        TOKENS,
        ("tokens", "tokens", "rows"),
        {
            "tokens": "ends each line of a picture by a token, `[IMG_BREAK]`, the last by `[IMG_END]`",
            "rows": "ends each line of a picture but the last by a row of the picture, `v.token_embd.img_break`, which "
            "is no token",
        },
        where="in files of projector `pixtral`",
    )
    tiling: Literal["always", "larger"] = quirk(
        "which pictures are cut into tiles",
        TILES,
        ("always", "always", "larger"),
        {
            "always": "cuts every picture into tiles, at a size chosen in float64",
            "larger": "cuts only pictures larger than the tower's input into tiles, at a size chosen in float32",
        },
        where=f"{ANYRES}, and {INTERNVL}",
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
