"""Engines that can be compared: this one, llama.cpp, transformers, files."""
