"""Commands in children that are forked from this process, whose imports are done."""

import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from c2r.cli import run_command


@dataclass(frozen=True)
class Child:
    """A command that runs in a session of its own; its output goes to two files."""

    pid: int
    started: float
    log: Path

    @classmethod
    def start(cls, arguments, log, folder=".", environment=()):
        """Forks; `arguments` are those of `c2r`, which works in `folder`."""
        started = time.monotonic()
        pid = os.fork()
        if pid:
            return cls(pid, started, log)
        status = 1
        try:
            os.setsid()
            os.chdir(folder)
            os.environ.update(environment)
            for number, name in ((1, "out"), (2, "err")):
                file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(file, number)
            sys.stdout, sys.stderr = (os.fdopen(number, "w", 1) for number in (1, 2))
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)
            status = run_command(list(map(str, arguments)))
        except BaseException:  # noqa: BLE001 - told as any process tells it
            sys.excepthook(*sys.exc_info())
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def send(self, number):
        """Sends a signal; to all of its session where that is Ctrl-C, as a terminal does."""
        if number == signal.SIGINT:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def wait(self, seconds):
        """The exit status, negative for a signal; None where it has not ended in time."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None

    def end(self):
        """Kills what is left of its session."""
        for pid in self.session():
            os.kill(pid, signal.SIGKILL)

    def session(self):
        """The processes of its session that run still."""
        found = []
        for path in Path("/proc").glob("[0-9]*/stat"):
            try:
                state, _, _, session = path.read_text().rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(session) == self.pid and state != "Z":
                found.append(int(path.parent.name))
        return found

    @property
    def said(self):
        """What it wrote to stderr."""
        return Path(f"{self.log}.err").read_text(errors="replace")
