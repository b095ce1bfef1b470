"""A program over llama.cpp that writes every tensor it computes as a trace file."""
