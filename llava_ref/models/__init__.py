"""The networks, one file a family, and the choice between them.

A tower's file holds its plan, weights, forward pass and table of stages, a decoder's likewise; `family` says what the
rest of the program asks of them.
"""

from collections.abc import Iterable

from ..errors import GGUFError
from ..gguf.file import GGUFFile
from .clip import Clip
from .config import projector_of
from .family import TextModel, Tower
from .gemma3 import Gemma3
from .idefics3 import Idefics3
from .internvl import InternVL
from .llama import Llama
from .mllama import Mllama
from .mllama_vision import MllamaVision
from .pixtral import Pixtral
from .qwen2 import Qwen2, Qwen2VL
from .qwen2vl import QwenVision
from .siglip import Siglip
from .stages import Stage


def text_family(file: GGUFFile) -> type[TextModel]:
    """Return the decoder for `general.architecture`. Raises GGUFError for one that is not supported."""
    match file.string("general.architecture"):
        case "llama":
            return Llama
        case "gemma3":
            return Gemma3
        case "mllama":
            return Mllama
        case "qwen2":
            return Qwen2
        case "qwen2vl":
            return Qwen2VL
        case other:
            hint = " (this is an mmproj file)" if other == "clip" else ""
            problem = f"{other!r} is not supported, expected 'llama', 'gemma3', 'mllama', 'qwen2' or 'qwen2vl'{hint}"
            raise GGUFError(file.path, "general.architecture", problem)


def tower_family(file: GGUFFile) -> type[Tower]:
    """Return the tower for `clip.projector_type`. Raises GGUFError for one that is not supported."""
    if file.string("general.architecture", "") == "mllama":
        return MllamaVision
    match projector_of(file):
        case "mlp" | "ldp" | "ldpv2":
            return Clip
        case "gemma3":
            return Siglip
        case "idefics3":
            return Idefics3
        case "internvl":
            return InternVL
        case "qwen2vl_merger" | "qwen2.5vl_merger":
            return QwenVision
        case "pixtral":
            return Pixtral
        case other:
            known = "'mlp', 'ldp', 'ldpv2', 'gemma3', 'idefics3', 'internvl', 'pixtral', 'qwen2vl_merger'"
            problem = f"{other!r} is not supported, expected {known} or 'qwen2.5vl_merger'"
            raise GGUFError(file.path, "clip.projector_type", problem)


def holds_tower(file: GGUFFile) -> bool:
    """Say whether a text file has its tower, too: Ollama writes one file for both."""
    return "mllama.vision.block_count" in file and "mm.0.weight" in file.tensors


def types(files: Iterable[GGUFFile], stages: Iterable[Stage]) -> dict[str, str]:
    """Return for each stage that is a product with a matrix the ggml type of that matrix."""
    found = {name: view.type for file in files for name, view in file.tensors.items()}
    if "token_embd.weight" in found:
        found.setdefault("output.weight", found["token_embd.weight"])
    return {stage.name: found[stage.weight] for stage in stages if stage.weight in found}
