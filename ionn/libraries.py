"""What to install where a library is missing: Caffe, or whatever else cannot be imported."""

from __future__ import annotations

from ionn.errors import MissingLibraryError

# What Caffe's wheel is linked to, in Debian 12's packages.
CAFFE_PACKAGES = (
    "libboost-filesystem1.74.0",
    "libboost-python1.74.0",
    "libboost-thread1.74.0",
    "libgflags2.2",
    "libgoogle-glog0v6",
    "libhdf5-103-1",
    "libhdf5-hl-100",
    "libopenblas0-pthread",
    "libprotobuf32",
)

# Packages whose modules have another name.
_PACKAGES = {"google": "protobuf", "nacl": "pynacl", "skimage": "scikit-image", "zmq": "pyzmq"}


def missing_library(error: ImportError) -> MissingLibraryError:
    """The error for a user, from that of an import statement."""
    match error.name:
        case "caffe":
            hint = "install its wheel, which 'make wheels' builds beside ionn's"
            return MissingLibraryError(f"Caffe is missing, and this computes with it; {hint}")
        case "_caffe" | "caffe._caffe":
            packages = " ".join(CAFFE_PACKAGES)
            return MissingLibraryError(f"Caffe cannot be loaded: {error}; it needs the Debian packages {packages}")
    module = (error.name or "").partition(".")[0]
    package = _PACKAGES.get(module, module)
    return MissingLibraryError(f"{package} cannot be loaded: {error}; install it: pip install {package}")
