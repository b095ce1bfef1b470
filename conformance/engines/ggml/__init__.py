"""Run single operations of ggml."""
