"""The sizes that questions are asked in: those of LLaVA-1.5-7B, and tiny ones for tests."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sizes:
    """A decoder with a tower, and how much of either is run."""

    width: int = 4096
    mlp: int = 11008
    heads: int = 32
    head_size: int = 128
    layers: int = 32
    vocabulary: int = 32000
    context: int = 1024
    """Positions behind which a token is decoded."""
    prompt: int = 640
    """Rows of a prompt with a picture."""
    steps: int = 200
    """Steps that are compared bit for bit."""
    copy_bytes: int = 1 << 30
    vision_width: int = 1024
    vision_mlp: int = 4096
    vision_heads: int = 16
    vision_layers: int = 23
    image: int = 336
    patch: int = 14


LLAVA_7B = Sizes()
TINY = Sizes(64, 160, 2, 32, 1, 35, 12, 12, 2, 1 << 16, 64, 96, 1, 1, 28, 14)
