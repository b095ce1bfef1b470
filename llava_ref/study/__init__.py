"""Study the inside of a model: logit lens, attention, ablation, patching. Arrays in, arrays out."""
