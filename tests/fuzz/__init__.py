"""Random and mutated input."""
