"""Caffe's protobuf messages, without loading Caffe itself: planning needs `NetParameter`, not the engine."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

_NAME = "caffe.proto.caffe_pb2"


def _load() -> ModuleType:
    # `from caffe.proto import caffe_pb2` would load the whole engine (caffe/__init__.py). The module is registered
    # under its own name, so that a later `import caffe` finds it: the messages may be defined only once in a process.
    if _NAME in sys.modules:
        return sys.modules[_NAME]
    package = importlib.util.find_spec("caffe")
    if package is None or not package.submodule_search_locations:
        raise ImportError("Caffe is not installed in this environment: run 'make setup'")
    path = Path(next(iter(package.submodule_search_locations))) / "proto" / "caffe_pb2.py"
    spec = importlib.util.spec_from_file_location(_NAME, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path}: not found; run 'make setup'")
    module = importlib.util.module_from_spec(spec)
    sys.modules[_NAME] = module
    spec.loader.exec_module(module)
    return module


caffe_pb2 = _load()
