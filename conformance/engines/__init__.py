"""Run the engines that can be compared: this project, llama.cpp, transformers, trace files."""
