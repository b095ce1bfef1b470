"""Interpret the metadata of a file as this program does, as plain data. Only the header is read."""

from collections.abc import Mapping
from typing import Any, Literal

from ..chat.templates import choose_template
from ..errors import GGUFError
from ..gguf.file import GGUFFile
from ..models import holds_tower, text_family, tower_family
from ..models.weights import without_ones
from ..profiles import Quirks
from ..tokenizer.vocabulary import read_vocabulary

Kind = Literal["text model", "mmproj", "vocabulary", "other"]
ACTIVATION = {"gelu_erf": "GELU (erf)", "gelu_tanh": "GELU (tanh)", "gelu_quick": "quick GELU", "silu": "SiLU"}


def kind(file: GGUFFile) -> Kind:
    """Classify a file: by a token embedding, a vision tower, or a vocabulary without any tensor."""
    if "token_embd.weight" in file.tensors:
        return "text model"
    if file.get("clip.has_vision_encoder") is True or any(name.startswith("mm.") for name in file.tensors):
        return "mmproj"
    return "vocabulary" if "tokenizer.ggml.tokens" in file and not file.tensors else "other"


def histogram(file: GGUFFile) -> dict[str, dict[str, int]]:
    """Count tensors, weights and bytes by type, the largest number of bytes first."""
    counts: dict[str, dict[str, int]] = {}
    for view in file.tensors.values():
        entry = counts.setdefault(view.type, {"tensors": 0, "weights": 0, "bytes": 0})
        weights = 1
        for n in view.shape:
            weights *= n
        for key, count in (("tensors", 1), ("weights", weights), ("bytes", len(view.data))):
            entry[key] += count
    return dict(sorted(counts.items(), key=lambda item: -item[1]["bytes"]))


def image_pipeline(file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
    """Describe the steps from the decoded picture to the decoder. Raises GGUFError for an unsupported tower."""
    family = tower_family(file)
    name, axis = family.output(file)
    shape = without_ones(file.tensors[name].shape) if name in file.tensors else ()
    return family.about(file, quirks) | {"output_width": shape[axis] if len(shape) > axis else None}


def text_model(file: GGUFFile, quirks: Quirks) -> dict[str, Any]:
    """Describe a decoder's shape, vocabulary and chat template. Raises GGUFError for an unsupported decoder."""
    template, with_mmproj = (choose_template(file, has_mmproj=known) for known in (False, True))
    return {
        **text_family(file).about(file, quirks),
        **vocabulary(file),
        "template": template.name,
        "template_why": template.why,
        "template_with_mmproj": with_mmproj.name,
    }


def vocabulary(file: GGUFFile) -> dict[str, Any]:
    """Describe the vocabulary of a file. Raises GGUFError for an unsupported one."""
    v = read_vocabulary(file)
    return {
        "vocabulary": len(v.texts),
        "tokenizer": v.model,
        "add_bos": v.add_bos,
        "end_tokens": {v.texts[i]: i for i in sorted(v.end_ids)},
    }


def meaning(file: GGUFFile, quirks: Quirks) -> tuple[Mapping[str, Any], str | None]:
    """Describe a file under `text` or `image_pipeline`; the second value says why this program cannot run it, if so."""
    category = kind(file)
    try:
        if category == "mmproj":
            return {"image_pipeline": image_pipeline(file, quirks)}, None
        if category == "text model":
            tower = {"image_pipeline": image_pipeline(file, quirks)} if holds_tower(file) else {}
            return {"text": text_model(file, quirks), **tower}, None
        if category == "vocabulary":
            return {"text": vocabulary(file)}, "a vocabulary without weights"
    except GGUFError as error:
        return {}, f"{error.field}: {error.problem}"
    return {}, "neither a text model nor an mmproj file"
