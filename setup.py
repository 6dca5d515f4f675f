from pathlib import Path

from setuptools import find_packages, setup
from setuptools.command.build_py import build_py


class BuildPy(build_py):
    """The definitions of the models lie in prototxt/ here, and in the package where ionn is installed."""

    def run(self) -> None:
        super().run()
        if not self.editable_mode:
            folder = Path(self.build_lib, "ionn", "prototxt")
            self.mkpath(str(folder))
            for definition in Path("prototxt").glob("*.prototxt"):
                self.copy_file(str(definition), str(folder))


# Caffe is not in this list: PyPI has no Caffe (its project `caffe` is an empty placeholder), so `make setup` builds
# the wheel with caffe-build/ and installs it beside ionn.
DEPENDENCIES = [
    # What crosses the link is coded with it. The standard library has it from Python 3.14 on.
    'backports.zstd>=1.0,<2; python_version < "3.14"',
    "click>=8.1,<9",  # the command line
    "joblib>=1.4,<2",  # sweeps in several processes
    "matplotlib>=3.9,<4",  # figures; 3.9 is the first for numpy 2
    "msgspec>=0.19,<1",  # what is read from outside is checked against the types that declare it
    "numpy>=2,<3",  # the Caffe wheel is built against numpy 2
    "platformdirs>=4,<5",  # where a user's data are: the weights of the models that come along
    "protobuf>=4.25,<8",  # Caffe's messages: the first that takes ours; 7.36 still runs what Debian's protoc generates
    "pynacl>=1.6,<2",  # CurveZMQ's cryptography in the server's own ZMTP endpoint; 1.6 has what it needs
    "pyzmq>=25,<28",  # the client's end of the wire
    "scikit-image>=0.24,<1",  # the photographs it bundles, as inputs; pycaffe imports it too
    "scipy>=1.13,<2",  # non-negative least squares, for the device cost models
    "tqdm>=4.65,<5",  # the progress bar
    "xxhash>=3,<4",  # a checksum as fast as memory, for weights that a server reads from its store; it ships its types
]
CLUSTER_DEPENDENCIES = [
    "distributed>=2024.8",  # ionn sweep --cluster; versions by date: the scheduler's is the one to have
]
METRICS_DEPENDENCIES = [
    "prometheus-client>=0.20,<1",  # ionn serve --metrics
]
REPORT_DEPENDENCIES = [
    "plotly>=6,<8",  # the charts of report.html; it brings its JavaScript along
]
TEST_DEPENDENCIES = [
    *CLUSTER_DEPENDENCIES,
    *METRICS_DEPENDENCIES,
    *REPORT_DEPENDENCIES,
    "hypothesis>=6.100,<7",  # properties over generated inputs
    "mypy==2.4.*",  # types; pinned like ruff, as their verdicts change from release to release
    "opencv-python-headless>=4.10.0.84,<5",  # reads caffemodels without Caffe, an independent judge; 5 no longer does
    "pdoc>=15,<17",  # the reference of the library from its docstrings, for make docs
    "psutil>=5.9,<8",  # finds the processes that a run started
    "pytest>=8,<10",
    "pytest-timeout>=2.3.1,<3",  # no test may hang
    "pytest-xdist>=3.6,<4",  # the tests in several processes, as half of their time is waiting
    "ruff==0.17.*",  # lint and format
    "selenium>=4.20,<5",  # looks at report.html in Debian's Chromium
    "types-psutil>=5.9,<8",  # the types of psutil, which ships none, for mypy
]

FUZZ_DEPENDENCIES = [
    "atheris==3.0.*",  # fuzzing guided by coverage, for make fuzz; the last with wheels for Python 3.11
]

setup(
    name="ionn",
    version="1.0.0",
    description="Uploads a Caffe model from a mobile client to an edge server in parts, and answers queries meanwhile",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="BSD-2-Clause",
    license_files=["LICENSE"],
    author="The ionn authors",
    # The repository has no public address yet; this is what it reproduces.
    project_urls={"Paper": "https://doi.org/10.1145/3325413.3329788"},
    keywords=["deep neural network", "edge computing", "computation offloading", "Caffe"],
    classifiers=[
        "Development Status :: 5 - Production/Stable",
        "Environment :: Console",
        "Intended Audience :: Science/Research",
        "License :: OSI Approved :: BSD License",
        "Operating System :: POSIX :: Linux",
        "Programming Language :: Python :: 3 :: Only",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
        "Topic :: System :: Distributed Computing",
        "Typing :: Typed",
    ],
    python_requires=">=3.11",
    packages=find_packages(include=["ionn", "ionn.*"]),
    package_data={"ionn": ["costs/devices/*.json", "costs/ratios/*.json", "evaluation/web/*", "py.typed"]},
    install_requires=DEPENDENCIES,
    extras_require={
        "cluster": CLUSTER_DEPENDENCIES,
        "fuzz": FUZZ_DEPENDENCIES,
        "metrics": METRICS_DEPENDENCIES,
        "report": REPORT_DEPENDENCIES,
        "test": TEST_DEPENDENCIES,
    },
    cmdclass={"build_py": BuildPy},
    entry_points={"console_scripts": ["ionn = ionn.__main__:main"]},
)
