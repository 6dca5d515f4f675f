"""`python -m tests.systems NAME`: the script of that name, which makes other Debians, as root.

What the scripts import takes a while, and a signal meanwhile ends them as `tests.systems.script` says.
"""

import importlib
import sys

from tests.systems.script import SetupError, run_script

SCRIPTS = ("arm64", "container", "debian", "service")


def work() -> None:
    """Have the script do its work: its arguments are those behind its name."""
    del sys.argv[0]
    if not sys.argv or sys.argv[0] not in SCRIPTS:
        raise SetupError(f"the first argument is one of {', '.join(SCRIPTS)}")
    importlib.import_module(f"tests.systems.{sys.argv[0]}").main()


if __name__ == "__main__":
    run_script(sys.argv[1] if len(sys.argv) > 1 else "tests.systems", work)
