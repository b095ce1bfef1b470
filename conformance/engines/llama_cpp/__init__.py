"""llama.cpp, run in a process of its own."""
