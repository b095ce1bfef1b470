"""The quirks of LLaVA's implementations, one table, and the profiles that choose a value for each.

A quirk is one point on which implementations differ; a profile is a named choice of all of them, made once at load. The
table begins in `vision_quirks`, with what concerns a picture and its tower.
Sources: `llava` is haotian-liu/LLaVA v1.2.2 with CLIP as transformers runs it; `hf` is transformers' own processor and
model, release 5.24; `llama.cpp` is tools/mtmd of release b10605 (clip.cpp, models/llava.cpp, mtmd-image.cpp), unchanged
up to b11739.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal

from .errors import ParameterError, nearest
from .quirk import ATTENTION, DECODER, MLLAMA, NAMES, TOKENS, Quirk, quirk
from .vision_quirks import Alpha, Exif, VisionQuirks

__all__ = ["PROFILES", "QUIRKS", "Alpha", "Exif", "ImageOrder", "Quirks", "describe", "resolve"]

ImageOrder = Literal["first", "template", "given"]


@dataclass(frozen=True, slots=True)
class Quirks(VisionQuirks):
    """One value per quirk; the defaults are profile `llava`. Each row: profiles `llava`, `hf`, `llama.cpp`; values."""

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
    blind_rows: Literal["skip", "see"] = quirk(
        "rows in front of all pictures, in layers that look at pictures",
        DECODER,
        ("skip", "see", "skip"),
        {
            "skip": "adds nothing to rows in front of all pictures",
            "see": "lets attention of rows in front of all pictures see every state, those of pictures behind them too",
        },
        where=MLLAMA,
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
ORIGINALS: Mapping[str, Quirks] = {
    "llava": PROFILES["llava"],
    "hf": PROFILES["hf"],
    "meta": replace(PROFILES["hf"], tower_states="before", blind_rows="skip"),  # Meta's llama-models
}
"""What profile `llava` is for a family, by its `ORIGINAL`: its own code's choice of the quirks that it meets."""


def resolve(profile: str, overrides: Mapping[str, str] | None = None, original: str = "llava") -> Quirks:
    """Return the quirks of `profile` with `overrides`; `original`: of `ORIGINALS`, for profile `llava`.

    Raises ParameterError for an unknown profile, quirk or value."""
    if profile not in PROFILES:
        raise ParameterError("profile", repr(profile), f"unknown, expected one of {', '.join(PROFILES)}")
    for name, value in (overrides or {}).items():
        if name not in QUIRKS:
            problem = f"unknown, expected one of {', '.join(QUIRKS)}{nearest(name, QUIRKS)}"
            raise ParameterError("quirk", repr(name), problem)
        if value not in QUIRKS[name].values:
            raise ParameterError("quirk", name, f"{value!r} is not one of {', '.join(QUIRKS[name].values)}")
    chosen = ORIGINALS[original] if profile == "llava" else PROFILES[profile]
    return replace(chosen, **dict(overrides or {}))  # type: ignore[arg-type]


def describe(quirks: Quirks) -> dict[str, str]:
    """Return {quirk: value} in the order of the table."""
    return {name: getattr(quirks, name) for name in QUIRKS}
