"""Decode pictures to RGB (`decode`, `load`), and fit them into the pixels that a tower takes (`fit`)."""

from .decoding import DecodedImage, ImageSource, decode, load, measure

__all__ = ["DecodedImage", "ImageSource", "decode", "load", "measure"]
