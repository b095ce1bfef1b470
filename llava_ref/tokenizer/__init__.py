"""Text -> token ids -> text, by the vocabulary in a GGUF file."""
