"""The `ionn` command. From its first import on, and until its work is done, Ctrl-C ends it with exit code 130; `serve`
and `link`, which run until they are told to stop, end with 0 at SIGTERM."""

import signal
import sys


def main() -> None:
    try:
        if sys.argv[1:2] in (["serve"], ["link"]):
            signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(0))
        from ionn.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        sys.stderr.write("ionn: interrupted\n")
        sys.exit(130)
    finally:
        # The interpreter takes a moment to end, without handlers for signals. By now the exit code is settled.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
