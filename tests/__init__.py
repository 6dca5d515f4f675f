"""The tests. `make test` runs them; docs/design.md says how."""
