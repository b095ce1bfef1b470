"""Convert text to token ids and back, with the vocabulary of a GGUF file."""
