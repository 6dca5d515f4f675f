"""The client of a server: its session, its queries, and its pacing to a device."""
