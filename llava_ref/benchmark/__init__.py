"""Measure how fast a model runs, and what the memory of this machine would allow."""
