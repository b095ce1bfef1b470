"""Programs that engines of others can be compared with: examples to begin with."""
