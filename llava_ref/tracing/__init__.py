"""Watch and change a run: taps, probes, trace files, distances between arrays."""
