"""Turn messages into a prompt (`render`), and the prompt into chunks of token ids and image slots."""

from .rendering import render

__all__ = ["render"]
