"""Load a GGUF pair into transformers' own model, dequantised to float32: the way back from `convert`."""

from pathlib import Path

from llava_ref.gguf import file as gguf

from .gemma3 import load_gemma3
from .llava import load_llava
from .model import HfModel
from .qwen2vl import load_qwen2vl


def load(text: Path, mmproj: Path | None) -> HfModel:
    """Load a pair, or a text file alone. Raises ReferenceError for what transformers cannot express, GGUFError for a
    broken file."""
    files = gguf.read(text), None if mmproj is None else gguf.read(mmproj)
    match files[0].string("general.architecture"):
        case "gemma3":
            return load_gemma3(*files)
        case "qwen2vl":
            return load_qwen2vl(*files)
        case _:
            return load_llava(*files)
