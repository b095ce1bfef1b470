"""Read GGUF files: `read` returns the metadata and the table of tensors; data stay on disk until they are used."""

from .file import GGUFFile, TensorView, hashes, read

__all__ = ["GGUFFile", "TensorView", "hashes", "read"]
