"""A server that is up to no good, and its clients."""
