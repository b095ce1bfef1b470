"""Products with one row of a matrix, one module a type."""
