"""Load a GGUF pair into transformers' own model, dequantised to float32: the way back from `convert`."""

from pathlib import Path

from llava_ref.gguf import file as gguf

from .gemma3 import load_gemma3
from .idefics3 import load_idefics3
from .internvl import load_internvl
from .llava import load_llava
from .mllama import load_mllama
from .model import HfModel
from .pixtral import load_pixtral
from .qwen2vl import load_qwen2vl


def load(text: Path, mmproj: Path | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express, GGUFError for a
    broken file."""
    text_file, tower = gguf.read(text), None if mmproj is None else gguf.read(mmproj)
    match text_file.string("general.architecture"):
        case "gemma3":
            return load_gemma3(text_file, tower)
        case "mllama":
            return load_mllama(text_file, tower)
        case "qwen2vl":
            return load_qwen2vl(text_file, tower)
        case "qwen2" if tower is None:
            return load_qwen2vl(text_file, None)
    if tower is not None:
        match tower.string("clip.projector_type", ""):
            case "idefics3":
                return load_idefics3(text_file, tower)
            case "internvl":
                return load_internvl(text_file, tower)
            case "pixtral":
                return load_pixtral(text_file, tower)
    return load_llava(text_file, tower)
