"""Metadata keys of GGUF files, and what each does in llama.cpp and transformers."""
