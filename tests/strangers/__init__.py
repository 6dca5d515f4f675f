"""Peers without a session that are up to no good, and the server."""
