"""Which of OpenBLAS's kernels the engine asks for."""

from __future__ import annotations

import io
import os
import platform

import pytest

from ionn.model import engine

ZEN4 = "processor\t: 0\nvendor_id\t: AuthenticAMD\ncpu family\t: 25\nflags\t\t: fpu avx2 avx512f\n\nprocessor\t: 1\n"


@pytest.mark.parametrize(
    ("machine", "cpuinfo", "asked"),
    [
        ("x86_64", ZEN4, "Haswell"),
        ("x86_64", ZEN4.replace(" avx512f", ""), None),
        ("x86_64", ZEN4.replace("AuthenticAMD", "GenuineIntel"), None),
        ("aarch64", ZEN4, None),  # qemu's user mode on a Zen 4
        ("aarch64", "processor\t: 0\nFeatures\t: fp asimd\n", None),
    ],
)
def test_kernels_are_chosen_for_zen4_only(
    monkeypatch: pytest.MonkeyPatch, machine: str, cpuinfo: str, asked: str | None
) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr("builtins.open", lambda *arguments, **options: io.StringIO(cpuinfo))
    monkeypatch.setenv("OPENBLAS_CORETYPE", "")  # so that what is set from here on is undone
    monkeypatch.delenv("OPENBLAS_CORETYPE")
    engine.set_environment()
    assert os.environ.get("OPENBLAS_CORETYPE") == asked
