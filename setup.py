from setuptools import find_packages, setup

# Caffe is not in this list: PyPI has no Caffe (its project `caffe` is an empty placeholder), so `make setup` builds
# the wheel with caffe-build/ and installs it beside ionn.
DEPENDENCIES = [
    "click>=8.1,<9",  # the command line
    "matplotlib>=3.9,<4",  # figures; 3.9 is the first for numpy 2
    "numpy>=2,<3",  # the Caffe wheel is built against numpy 2
    "protobuf>=4.21,<8",  # Caffe's messages: Debian's protoc 3.21 generates code for 4.21, known to run with 7.36
    "pyzmq>=25,<28",  # the wire between client and server
    "scikit-image>=0.24,<1",  # the photographs it bundles, as inputs; pycaffe imports it too
    "scipy>=1.13,<2",  # non-negative least squares, for the device cost models
    "tqdm>=4.65,<5",  # the progress bar
]
TEST_DEPENDENCIES = [
    "hypothesis>=6.100,<7",
    "mypy==2.4.*",  # this and ruff change their verdicts from release to release
    "opencv-python-headless>=4.10,<5",  # reads prototxt + caffemodel without Caffe: an independent judge, until 5
    "pytest>=8,<10",
    "pytest-timeout>=2.3,<3",
    "ruff==0.17.*",
]

setup(
    name="ionn",
    version="0.1.0",
    description="Uploads a Caffe model from a mobile client to an edge server in parts, and answers queries meanwhile",
    license="BSD-2-Clause",
    author="The ionn authors",
    python_requires=">=3.11",
    packages=find_packages(include=["ionn", "ionn.*"]),
    package_data={"ionn": ["devices/*.json"]},
    install_requires=DEPENDENCIES,
    extras_require={"test": TEST_DEPENDENCIES},
    entry_points={"console_scripts": ["ionn = ionn.cli:main"]},
)
