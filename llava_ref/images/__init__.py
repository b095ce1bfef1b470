"""Pictures: bytes -> RGB (`decode`, `load`) -> the square and the pixels that a tower sees."""

from .decoding import DecodedImage, ImageSource, decode, load, measure

__all__ = ["DecodedImage", "ImageSource", "decode", "load", "measure"]
