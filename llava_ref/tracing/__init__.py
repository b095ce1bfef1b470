"""Watching and changing a run: taps, probes, trace files, distances between arrays."""
