"""`inspect`: print the header of a GGUF file of any architecture, and what it means for this program."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .. import gguf
from ..errors import GGUFError, printable
from ..gguf.file import GGUFFile
from ..loading import original
from ..profiles import QUIRKS, describe, resolve
from . import options
from .facts import ACTIVATION, histogram, kind, meaning
from .output import print_json
from .parser import Example, Parser

SHORT = 8  # longest array that is shown in full
WIDTH = 100  # characters of a text that are shown


EXAMPLES: Sequence[Example] = (
    (
        "llava-ref inspect mmproj.gguf",
        "the kind of file, its metadata, types and tensors, and what becomes of a picture",
    ),
    (
        "llava-ref inspect text.gguf --profile llama.cpp --json",
        "the same as one JSON object, as llama.cpp would run it",
    ),
)


def add_arguments(parser: Parser) -> None:
    parser.group("files").add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    options.add_profile(parser)
    options.add_json(parser, "print one JSON object")
    parser.epilog = f"{parser.epilog}\n\nquirks, each with its values:\n{_quirk_lines()}"


def _quirk_lines() -> str:
    """List the quirks, one a line, each with its values."""
    width = max(map(len, QUIRKS))
    return "\n".join(f"  {name:{width}}  {' | '.join(row.values)}" for name, row in QUIRKS.items())


def run(args: argparse.Namespace) -> int:
    file = gguf.read(args.file)
    quirks = resolve(args.profile, options.quirks(args), _original(file))
    report = inspect(file) | {"profile": args.profile, "quirks": describe(quirks)}
    means, problem = meaning(file, quirks)
    report |= {**means, "supported": problem is None, "problem": problem}
    if args.json:
        print_json(report)
    else:
        print("\n".join(_pages(report)))
    return 0


def _original(file: GGUFFile) -> str:
    """Return whose code profile `llava` follows for this file, LLaVA's if the file is not supported."""
    try:
        return original(*((None, file) if kind(file) == "mmproj" else (file, None)))
    except GGUFError:
        return "llava"


def inspect(file: GGUFFile) -> dict[str, Any]:
    """Return the header as plain data. A long array is given by its length and first elements."""
    types = histogram(file)
    return {
        "path": str(file.path),
        "kind": kind(file),
        "version": file.version,
        "architecture": _plain(file.get("general.architecture")),
        "name": _plain(file.get("general.name")),
        "n_tensors": len(file.tensors),
        "n_weights": sum(entry["weights"] for entry in types.values()),
        "n_bytes": sum(entry["bytes"] for entry in types.values()),
        "types": types,
        "metadata": {key: _plain(value) for key, value in file.items()},
        "tensors": [
            {"name": view.name, "type": view.type, "shape": list(view.shape), "bytes": len(view.data)}
            for view in file.tensors.values()
        ],
    }


def _plain(value: Any) -> Any:
    """Convert a metadata value to JSON's types. NaN and infinity, which JSON lacks, become text."""
    if isinstance(value, str | bool | int) or value is None:
        return value
    if isinstance(value, float):
        return value if value - value == 0 else str(value)  # NaN and infinity
    if isinstance(value, Sequence) or hasattr(value, "tolist"):
        if len(value) <= SHORT:
            return [_plain(x) for x in _list(value)]
        return {"length": len(value), "first": [_plain(x) for x in _list(value[:SHORT])]}
    return str(value)


def _list(values: Any) -> list[Any]:
    return values.tolist() if hasattr(values, "tolist") else list(values)


def _pages(report: dict[str, Any]) -> list[str]:
    """Write the report for people; every text from the file is escaped and shortened."""
    name = f" “{_short(report['name'])}”" if report["name"] else ""
    lines = [
        f"{printable(report['path'])}",
        f"  {report['kind']}, architecture {_short(report['architecture'])}{name}, GGUF version {report['version']}",
        f"  {report['n_tensors']} tensors, {report['n_weights']:,} weights, {report['n_bytes']:,} bytes",
        "",
        "metadata",
    ]
    width = min(48, max(map(len, report["metadata"]), default=0))
    lines += [f"  {printable(key, 100):{width}}  {_short(value)}" for key, value in report["metadata"].items()]
    lines += ["", "tensors"]
    width = min(48, max((len(t["name"]) for t in report["tensors"]), default=0))
    for t in report["tensors"]:
        shape = " x ".join(map(str, t["shape"])) or "scalar"
        lines.append(f"  {printable(t['name'], 100):{width}}  {t['type']:8} {shape:>20}  {t['bytes']:>15,} bytes")
    lines += ["", "types"]
    for name, entry in report["types"].items():
        share = entry["bytes"] / max(report["n_bytes"], 1)
        lines.append(f"  {name:8} {entry['tensors']:5} tensors  {entry['weights']:>15,} weights  {share:6.1%} of bytes")
    return [*lines, "", *_meaning(report)]


def _short(value: Any) -> str:
    if isinstance(value, dict):
        first = ", ".join(_short(x) for x in value["first"])
        return printable(f"{value['length']:,} elements: {first}, …", 2 * WIDTH)
    if isinstance(value, list):
        return printable("[" + ", ".join(_short(x) for x in value) + "]", 2 * WIDTH)
    return printable(f"{value:.7g}" if isinstance(value, float) else str(value), WIDTH)


def _meaning(report: dict[str, Any]) -> list[str]:
    if report["problem"] is not None:
        known = _table(_vocabulary_rows(report["text"])) if "text" in report else []
        return [f"not supported here: {printable(report['problem'])}", *known]
    text = ["text model", *_table(_text_rows(report["text"]))] if "text" in report else []
    tower = ["image pipeline", *_table(_image_rows(report))] if "image_pipeline" in report else []
    return [*text, *([""] if text and tower else []), *tower]


def _text_rows(t: dict[str, Any]) -> dict[str, str]:
    rope, window = t["rope"], t["sliding_window"]
    scaling = "" if rope["scaling"] == "none" else f", {rope['scaling']} scaling by {rope['factor']:g}"
    scaling += "" if rope["length"] == 1 else f", q and k times {rope['length']:g}"
    return {
        "context": f"{t['context']} positions"
        + (f", each sees {window}" if window and "local_blocks" not in t else ""),
        "blocks": f"{t['blocks']} of width {t['width']}, MLP {t['mlp_width']}",
        **(
            {"look at pictures": f"blocks {', '.join(map(str, looks))}"} if (looks := t.get("layers_that_look")) else {}
        ),
        "heads": f"{t['heads']} over {t['key_value_heads']} for keys and values, of {t['head_size']}",
        "rope": f"base {rope['base']:g}{scaling}",
        **_local_rows(t),
        **_vocabulary_rows(t),
        "template": f"{t['template']}: {t['template_why']}",
        "with an mmproj": t["template_with_mmproj"],
    }


def _local_rows(t: dict[str, Any]) -> dict[str, str]:
    """Describe the blocks that see only a window, if a decoder has two kinds of blocks."""
    if not t.get("local_blocks"):
        return {}
    n, window, base = len(t["local_blocks"]), t["sliding_window"], t["local_rope"]["base"]
    return {"local blocks": f"{n} of {t['blocks']}: each position sees {window}, rope base {base:g}"}


def _looking_rows(t: dict[str, Any]) -> dict[str, str]:
    """Describe the blocks that look at pictures, if a decoder has some."""
    looks = t.get("layers_that_look")
    return {"look at pictures": f"blocks {', '.join(map(str, looks))}"} if looks else {}


def _vocabulary_rows(t: dict[str, Any]) -> dict[str, str]:
    return {
        "vocabulary": f"{t['vocabulary']:,} tokens ({t['tokenizer']}), BOS {'first' if t['add_bos'] else 'not added'}",
        "answers end": " ".join(t["end_tokens"]) or "at the end of the context only",
    }


PICTURE_RULES = (
    "square",
    "fit",
    "tiling",
    "overview",
    "tiles",
    "resize_order",
    "tile_grid",
    "tile_shape",
    "lone_tile",
    "longest_edge",
    "picture_size",
    "line_breaks",
)


def _image_rows(report: dict[str, Any]) -> dict[str, str]:
    p, quirks = report["image_pipeline"], report["quirks"]
    rules = [name for name in PICTURE_RULES if name in p]
    said = ", and ".join(QUIRKS[name].values[p[name]] for name in rules)
    rows = {
        "picture": f"{_size(p)}; the profile {said}" if said else _size(p),
        "patches": f"{p['patch_size']} x {p['patch_size']} pixels: {_patches(p)}",
        "positions": f"{p['tokens_per_image']} in the prompt for each picture",
    }
    if "tile_sizes" in p:
        rows["tiles"] = "cut from pictures of " + ", ".join(f"{width} x {height}" for width, height in p["tile_sizes"])
    if "longest_edge_pixels" in p:
        rows["tiles"] = f"cut from pictures whose longer side has {p['longest_edge_pixels'] or 'its own'} pixels"
    if "most_tiles" in p:
        rows["tiles"] = f"at most {p['most_tiles']} side by side, the picture in the upper left, black beside it"
        rows["states"] = f"{', '.join(map(str, p['states_of_blocks']))}: features too, {p['tower_states']} the block"
    if "tokens_least" in p:
        rows["positions"] = f"{p['tokens_least']} to {p['tokens_per_image']} in the prompt for a picture, by its size"
    if "class_token" in p:
        rows |= _clip_rows(p)
    return rows | {
        "activation": ACTIVATION[p["activation"]],
        "projector": f"{p['projector']}, rows of {p['output_width']}",
        f"profile {report['profile']}": ", ".join(f"{name}={value}" for name, value in quirks.items()),
    }


def _size(p: dict[str, Any]) -> str:
    if "square_pixels" in p:
        return f"of any size, in squares of {p['square_pixels']} pixels a side"
    return f"{p['image_size']} x {p['image_size']} pixels"


def _patches(p: dict[str, Any]) -> str:
    return f"{p['merge']} x {p['merge']} a square" if "square_pixels" in p else f"{p['grid'][0]} x {p['grid'][1]}"


def _clip_rows(p: dict[str, Any]) -> dict[str, str]:
    by_profile = ", ".join(f"{name} {n}" for name, n in p["blocks_run_by_profile"].items())
    feature = p["feature_layer"]
    key = "no feature_layer key" if feature is None else f"clip.vision.feature_layer {feature}"
    return {
        "class token": p["class_token"] or "none",
        "blocks run": f"{p['blocks_run']} of {p['blocks_stored']} stored ({key}; by profile: {by_profile})",
        "post_ln": p["post_ln"] or "not in the file",
        "projector's GELU": ACTIVATION[p["projector_activation"]],
    }


def _table(rows: dict[str, str]) -> list[str]:
    return [f"  {key:16}  {printable(value, 4 * WIDTH)}" for key, value in rows.items()]
