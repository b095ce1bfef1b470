"""What `python -m llava_ref.kernels.bench` asks a card: kernels by themselves, and whole models of random weights."""
