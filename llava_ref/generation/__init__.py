"""Sequences and answers: feed, sample, stop."""
