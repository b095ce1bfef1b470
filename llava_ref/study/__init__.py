"""What a researcher does with the inside of a model: lens, attention, ablation, patching. Arrays in, arrays out."""
