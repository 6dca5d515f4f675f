"""The edge server: the front that everybody talks to, and a worker, a process of its own, for each session."""
