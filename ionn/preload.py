"""What the server's fork server loads once, so that every worker process starts with it."""

import signal

from ionn import engine, worker

__all__ = ["worker"]

engine.load_caffe()
# It may reach the whole process group. The fork server ends when the server does.
signal.signal(signal.SIGTERM, signal.SIG_IGN)
