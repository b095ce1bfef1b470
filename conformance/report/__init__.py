"""Report a comparison in words, as a page and as plots."""
