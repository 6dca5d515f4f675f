"""What the server's fork server loads once, so that every worker process starts with it."""

from ionn import engine, worker

__all__ = ["worker"]

engine.load_caffe()
