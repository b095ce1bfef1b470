"""Chat: messages -> a prompt (`render`) -> chunks of token ids and places of pictures."""

from .rendering import render

__all__ = ["render"]
