"""The report of a comparison: words, page, plots."""
