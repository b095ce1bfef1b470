"""Random pairs of GGUF files for tests, and a real model from a package."""
