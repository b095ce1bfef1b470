"""Comparison of two engines, stage by stage."""
