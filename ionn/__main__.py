"""The `ionn` command. Until it has done its work, from its first import on, Ctrl-C ends it with exit code 130."""

import signal
import sys


def main() -> None:
    try:
        from ionn.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("ionn: interrupted\n")
        sys.exit(130)
    finally:
        # The interpreter's own end takes a moment too. By then the exit code is settled.
        signal.signal(signal.SIGINT, signal.SIG_IGN)


if __name__ == "__main__":
    main()
