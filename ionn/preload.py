"""What the server's fork server loads once, so that every worker process starts with it."""

import signal

# Both may reach the whole process group, at any time. The fork server ends when the server does.
signal.signal(signal.SIGINT, signal.SIG_IGN)
signal.signal(signal.SIGTERM, signal.SIG_IGN)

from ionn import engine, worker  # noqa: E402

__all__ = ["worker"]

engine.load_caffe()
