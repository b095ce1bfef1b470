"""The networks: configurations read from metadata, weights, forward passes, names of stages."""
