"""Golden bundles: what is in them, how they are made, checked and confirmed."""
