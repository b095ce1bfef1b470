"""transformers, with weights read from GGUF files."""
