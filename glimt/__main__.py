"""Entry point of the `glimt` command, also as `python -m glimt`; Ctrl-C leaves no traceback."""

import signal
import sys

EXIT_INTERRUPTED = 128 + signal.SIGINT


def main() -> None:
    """Load the command line and run it. Commands that can keep something catch Ctrl-C before."""
    try:
        from glimt.cli import main as run  # loading is where an early Ctrl-C falls

        run()
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)


if __name__ == "__main__":
    main()
