"""Compare two engines stage by stage."""
