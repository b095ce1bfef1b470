"""Train the embedded model. Needs torch, sentencepiece and gguf; nothing in `llava_ref` imports this package."""
