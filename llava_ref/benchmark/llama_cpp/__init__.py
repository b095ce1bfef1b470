"""Measure llama.cpp beside this project: a native build, or the library of a Python package."""
