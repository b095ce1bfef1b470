"""GGUF files: `read` gives the metadata and the table of tensors; nothing is read from disk until it is used."""

from .file import GGUFFile, TensorView, read

__all__ = ["GGUFFile", "TensorView", "read"]
