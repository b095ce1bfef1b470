"""Hugging Face folders -> GGUF files."""
