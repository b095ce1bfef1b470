"""A reference implementation of LLaVA-style vision-language inference over GGUF files.

    import llava_ref
    model = llava_ref.load("text.gguf", "mmproj.gguf")
    print(model.chat([{"role": "user", "content": "Who are you?"}], max_tokens=32).text)

The names below are imported when they are first used, so that `import llava_ref` loads neither torch nor numpy.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .errors import (
    GGUFError,
    ImageError,
    LlavaError,
    NumericsError,
    PairError,
    ParameterError,
    PromptError,
    TemplateError,
)

if TYPE_CHECKING:
    from . import chat, gguf, images
    from .generation.answer import Stream
    from .generation.request import Reply, Step
    from .generation.sampling import Sampling
    from .loading import embedded, load
    from .model import Llava

__all__ = [
    "GGUFError",
    "ImageError",
    "Llava",
    "LlavaError",
    "NumericsError",
    "PairError",
    "ParameterError",
    "PromptError",
    "Reply",
    "Sampling",
    "Step",
    "Stream",
    "TemplateError",
    "chat",
    "embedded",
    "gguf",
    "images",
    "load",
]

_HOME = {
    "Llava": "model",
    "Reply": "generation.request",
    "Sampling": "generation.sampling",
    "Step": "generation.request",
    "Stream": "generation.answer",
    "embedded": "loading",
    "load": "loading",
}


def __dir__() -> list[str]:
    """Return also the names that are imported when first used, for completion and for Python's suggestions."""
    return sorted({*globals(), *__all__, "__version__"} - {"Any", "TYPE_CHECKING", "import_module"})


def __getattr__(name: str) -> Any:
    if name in ("chat", "gguf", "images"):
        return import_module(f".{name}", __name__)
    if name in _HOME:
        return getattr(import_module(f".{_HOME[name]}", __name__), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("llava-ref")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
