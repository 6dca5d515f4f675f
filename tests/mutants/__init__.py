"""How much the tests notice."""
