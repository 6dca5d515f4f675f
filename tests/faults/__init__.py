"""Processes that die, links that break, messages that get lost."""
