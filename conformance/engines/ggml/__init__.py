"""Single operations of ggml."""
