"""What the metadata of a file means for this program, as plain data. Only the header is read."""

from collections.abc import Mapping
from typing import Any, Literal

from ..chat.templates import choose_template
from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..models import llama as decoder
from ..models.clip import VisionPlan, plan
from ..models.config import read_text, read_vision
from ..models.rope import length
from ..models.weights import without_ones
from ..profiles import PROFILES, Quirks
from ..tokenizer.vocabulary import read_vocabulary

Kind = Literal["text model", "mmproj", "vocabulary", "other"]
SQUARE = {
    "pad-resize": "padded to a square with the mean colour, then resized",
    "crop": "shortest side resized, then the centre cut out",
    "resize-pad": "resized to fit, then padded with (122, 116, 104)",
}
ACTIVATION = {"gelu_erf": "GELU (erf)", "gelu_tanh": "GELU (tanh)", "gelu_quick": "quick GELU", "silu": "SiLU"}


def kind(file: GGUFFile) -> Kind:
    """By what is in the file: a vision tower, or a vocabulary with an embedding for it, or without any tensor."""
    if file.get("clip.has_vision_encoder") is True or "mm.0.weight" in file.tensors:
        return "mmproj"
    if "token_embd.weight" in file.tensors:
        return "text model"
    return "vocabulary" if "tokenizer.ggml.tokens" in file and not file.tensors else "other"


def histogram(file: GGUFFile) -> dict[str, dict[str, int]]:
    """Type -> tensors, weights and bytes, the largest first."""
    found: dict[str, dict[str, int]] = {}
    for view in file.tensors.values():
        entry = found.setdefault(view.type, {"tensors": 0, "weights": 0, "bytes": 0})
        weights = 1
        for n in view.shape:
            weights *= n
        for key, count in (("tensors", 1), ("weights", weights), ("bytes", len(view.data))):
            entry[key] += count
    return dict(sorted(found.items(), key=lambda item: -item[1]["bytes"]))


def blocks_run(file: GGUFFile) -> dict[str, int]:
    """Profile -> blocks of the tower it runs. GGUFError for a tower that is not supported."""
    config = read_vision(file)
    return {name: plan(config, quirks).n_layer for name, quirks in PROFILES.items()}


def image_pipeline(file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
    """A picture's way from the decoded file to the decoder. GGUFError for a tower that is not supported."""
    c = read_vision(file)
    p: VisionPlan = plan(c, quirks)
    rows = without_ones(file.tensors["mm.2.weight"].shape)[:1] if "mm.2.weight" in file.tensors else ()
    return {
        "image_size": c.image_size,
        "patch_size": c.patch_size,
        "grid": [c.grid, c.grid],
        "tokens_per_image": c.n_patches,
        "square": quirks.square,
        "mean": list(c.mean),
        "std": list(c.std),
        "class_token": (quirks.class_token if "v.class_embd" in file.tensors else None),
        "blocks_stored": c.n_stored,
        "feature_layer": c.feature_layer,
        "blocks_run": p.n_layer,
        "blocks_run_by_profile": blocks_run(file),
        "post_ln": "v.post_ln.weight" in file.tensors and quirks.post_ln,
        "activation": p.activation,
        "projector": c.projector,
        "projector_activation": "gelu_erf" if quirks.gelu == "erf" else "gelu_tanh",
        "output_width": rows[0] if rows else None,
    }


def text_model(file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
    """A decoder's shape, vocabulary and chat template. GGUFError for one that is not supported."""
    c = decoder.plan(read_text(file), quirks)
    template, with_mmproj = (choose_template(file, has_mmproj=known) for known in (False, True))
    return {
        "architecture": "llama",
        "context": c.context,
        "width": c.width,
        "blocks": c.n_layer,
        "heads": c.n_head,
        "key_value_heads": c.n_head_kv,
        "head_size": c.head_size,
        "mlp_width": c.mlp_width,
        "rope": {"base": c.rope.base, "scaling": c.rope.scaling, "factor": c.rope.factor, "length": length(c.rope)},
        "attention_scale": c.attention_scale,
        "sliding_window": c.window,
        **vocabulary(file),
        "template": template.name,
        "template_why": template.why,
        "template_with_mmproj": with_mmproj.name,
    }


def vocabulary(file: GGUFFile) -> dict[str, Any]:
    """The tokens of a file. GGUFError for a vocabulary that is not supported."""
    v = read_vocabulary(file)
    return {
        "vocabulary": len(v.texts),
        "tokenizer": v.model,
        "add_bos": v.add_bos,
        "end_tokens": {v.texts[i]: i for i in sorted(v.end_ids)},
    }


def meaning(file: GGUFFile, quirks: Quirks) -> tuple[Mapping[str, Any], str | None]:
    """`text` or `image_pipeline`, and None; or what is known, and why this program cannot run the file."""
    found = kind(file)
    try:
        if found == "mmproj":
            return {"image_pipeline": image_pipeline(file, quirks)}, None
        if found == "text model":
            return {"text": text_model(file, quirks)}, None
        if found == "vocabulary":
            return {"text": vocabulary(file)}, "a vocabulary without weights"
    except GGUFError as error:
        return {}, f"{error.field}: {error.problem}"
    return {}, "neither a text model nor an mmproj file"
