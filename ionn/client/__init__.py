"""The client of a server: its session, its queries, and how it is paced to its device."""
