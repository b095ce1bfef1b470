"""Make, check and confirm golden bundles."""
