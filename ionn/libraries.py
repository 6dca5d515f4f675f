"""What to install if Caffe or another library cannot be imported."""

from __future__ import annotations

import platform

from ionn.errors import MissingLibraryError

# The packages with the libraries that Caffe's wheel is linked to, for each release of Debian that it is built on.
CAFFE_PACKAGES = {
    "12": (
        "libboost-filesystem1.74.0",
        "libboost-python1.74.0",
        "libboost-thread1.74.0",
        "libgflags2.2",
        "libgoogle-glog0v6",
        "libhdf5-103-1",
        "libhdf5-hl-100",
        "libopenblas0-pthread",
        "libprotobuf32",
    ),
    "13": (
        "libboost-filesystem1.83.0",
        "libboost-python1.83.0",
        "libboost-thread1.83.0",
        "libgflags2.2",
        "libgoogle-glog0v6t64",
        "libhdf5-310",
        "libhdf5-hl-310",
        "libopenblas0-pthread",
        "libprotobuf32t64",
    ),
}

# Python packages whose modules have another name.
_PACKAGES = {
    "backports": "backports.zstd",
    "google": "protobuf",
    "nacl": "pynacl",
    "skimage": "scikit-image",
    "zmq": "pyzmq",
}


def caffe_packages() -> tuple[str, ...]:
    """The packages for this machine's release of Debian; those of Debian 12 for any other system."""
    try:
        version = platform.freedesktop_os_release().get("VERSION_ID", "")
    except OSError:
        version = ""
    return CAFFE_PACKAGES.get(version, CAFFE_PACKAGES["12"])


def missing_library(error: ImportError) -> MissingLibraryError:
    """Turn the error of an import statement into one that tells the user what to install."""
    match error.name:
        case "caffe":
            hint = "install its wheel, which 'make wheels' builds beside ionn's"
            return MissingLibraryError(f"Caffe is missing, and this computes with it; {hint}")
        case "_caffe" | "caffe._caffe":
            packages = " ".join(caffe_packages())
            return MissingLibraryError(f"Caffe cannot be loaded: {error}; it needs the Debian packages {packages}")
    module = (error.name or "").partition(".")[0]
    package = _PACKAGES.get(module, module)
    return MissingLibraryError(f"{package} cannot be loaded: {error}; install it: pip install {package}")
