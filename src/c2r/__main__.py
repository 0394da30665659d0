"""The program `c2r`, and `python -m c2r`, which torchrun starts on each rank."""

import signal
import sys

from c2r.interrupts import interrupts


def main() -> None:
    """Runs the command that `sys.argv` names; may be interrupted from its first line."""
    with interrupts() as interrupt:
        try:
            from c2r.cli import run_command  # noqa: PLC0415 - seconds, in which Ctrl-C may come
        except BaseException:  # imports turn an interrupt into errors of their own
            if interrupt.number is None:
                raise
            sys.stderr.write(f"c2r: {interrupt.what}\n")
            status = interrupt.status
        else:
            status = run_command(sys.argv[1:])
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # nothing is left to save
    sys.exit(status)


if __name__ == "__main__":
    main()
