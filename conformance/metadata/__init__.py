"""Measure what each metadata key of a GGUF file does in llama.cpp and transformers."""
