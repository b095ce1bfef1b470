"""Profiles: which of several known behaviours to run, as data decided once at load.

A quirk is one point on which implementations of LLaVA differ; a profile is a named set of them. Sources: `llava` is
haotian-liu/LLaVA v1.2.2 with CLIP as transformers runs it; `hf` is transformers' LlavaProcessor and
LlavaForConditionalGeneration; `llama.cpp` is tools/mtmd of release b10605 (clip.cpp, models/llava.cpp, mtmd-image.cpp),
the same up to b11739.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Literal, get_args, get_type_hints

from .errors import ParameterError

ImageOrder = Literal["first", "template", "given"]


@dataclass(frozen=True, slots=True)
class Quirks:
    """One value per quirk; the defaults are profile `llava`."""

    class_token: Literal["first", "last"] = "first"
    """Where the class token stands when position embeddings are added; rows 1..N go to the projector either way."""
    vit_layers: Literal["stored", "one-less"] = "stored"
    """Blocks run where the file has no `clip.vision.feature_layer`: every stored one, or `block_count` - 1."""
    post_ln: Literal["skip", "apply"] = "skip"
    """Whether a stored `v.post_ln` is applied before the projector."""
    gelu: Literal["erf", "tanh"] = "erf"
    """The GELU meant by `clip.use_gelu` and by the projector."""
    square: Literal["pad-resize", "crop", "resize-pad"] = "pad-resize"
    """A picture to a square: mean-colour pad then resize; shortest side then centre crop; resize to fit then pad."""
    fit: Literal["stretch", "letterbox"] = "stretch"
    """A picture into the shape that the tower takes, in families that do not pad with their mean colour: stretched, or
    its aspect kept and the rest black."""
    exif: Literal["ignore", "apply"] = "ignore"
    """EXIF orientation (ignored with a warning when it is not 1)."""
    alpha: Literal["convert", "drop"] = "convert"
    """Transparency: Pillow's `convert("RGB")`, or the alpha channel dropped as stb_image does."""
    text_pieces: Literal["separate", "whole", "separate-prefixed"] = "separate"
    """Text around images: each piece tokenised by itself; the whole string at once; by itself, and an SPM space prefix
    also after a control token inside a piece."""
    image_order: ImageOrder = "first"
    """Where a message's pictures stand: before its texts, each on a line of its own, as LLaVA's own code puts them;
    where the template puts them, which gets the parts as a list, as transformers gives them (a template that only takes
    strings gets the pictures first); or where they came, as llama.cpp's markers do."""
    image_newlines: Literal["double", "none"] = "double"
    """Whether two line feeds stand before and after a picture's markers, in families that have markers."""
    window: Literal["honour", "ignore"] = "honour"
    """A sliding window that a file of the llama architecture asks for; llama.cpp does not read the key there."""
    attention_scale: Literal["honour", "ignore"] = "honour"
    """A `llama.attention.scale` in place of 1 / sqrt(head size); llama.cpp does not read the key there."""
    yarn_keys: Literal["honour", "ignore"] = "honour"
    """YaRN's `yarn_beta_fast`, `yarn_beta_slow` and `yarn_attn_factor`, which transformers' configuration has and
    llama.cpp's converter writes; llama.cpp does not read them there."""
    end_token: Literal["leave", "append"] = "leave"
    """Whether EOS stands behind a prompt where the vocabulary says `add_eos_token`. llama.cpp and transformers put it
    there; an answer then begins behind the end of a text, which LLaVA's own checkpoints never ask for."""
    kv_cache: Literal["f32", "f16"] = "f32"
    """What keys and values are kept in. Matters in precision `ggml` only; llama.cpp's `--cache-type-k` and `-v`."""
    flash_attention: Literal["off", "on"] = "off"
    """Whether attention is ggml's fused kind. Matters in precision `ggml` only; llama.cpp's `--flash-attn`."""


PROFILES: Mapping[str, Quirks] = {
    "llava": Quirks(),
    "hf": Quirks(square="crop", exif="apply", text_pieces="whole", image_order="template", end_token="append"),
    "llama.cpp": Quirks(
        class_token="last",
        vit_layers="one-less",
        post_ln="apply",
        gelu="tanh",
        square="resize-pad",
        fit="letterbox",
        alpha="drop",
        text_pieces="separate-prefixed",
        image_order="given",
        image_newlines="none",
        window="ignore",
        attention_scale="ignore",
        yarn_keys="ignore",
        end_token="append",
        kv_cache="f16",
        flash_attention="on",
    ),
}


def resolve(profile: str, overrides: Mapping[str, str] | None = None) -> Quirks:
    """The quirks of `profile`, with single ones changed. ParameterError names an unknown profile, quirk or value."""
    if profile not in PROFILES:
        raise ParameterError("profile", repr(profile), f"unknown, expected one of {', '.join(PROFILES)}")
    allowed = {name: get_args(kind) for name, kind in get_type_hints(Quirks).items()}
    for name, value in (overrides or {}).items():
        if name not in allowed:
            raise ParameterError("quirk", repr(name), f"unknown, expected one of {', '.join(allowed)}")
        if value not in allowed[name]:
            raise ParameterError("quirk", name, f"{value!r} is not one of {', '.join(allowed[name])}")
    return replace(PROFILES[profile], **dict(overrides or {}))  # type: ignore[arg-type]


def describe(quirks: Quirks) -> dict[str, str]:
    """Quirk name -> value, in the order of the table."""
    return {field.name: getattr(quirks, field.name) for field in fields(quirks)}
