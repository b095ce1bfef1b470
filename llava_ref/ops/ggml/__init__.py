"""The arithmetic of ggml's CPU backend, over either of our backends."""
