"""Commands in children that are forked from a process whose imports are done.

It is one that has done nothing else: torch's pool of threads does not outlive a fork.
"""

import multiprocessing
import os
import signal
import sys
import time
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import ModuleType

import torch

from c2r.cli import run_command

_FORKING = multiprocessing.get_context("forkserver")
_FORKING.set_forkserver_preload(
    [
        "transformers",
        "c2r.cli",
        "c2r.adapters.huggingface",
        "c2r.adapters.checkpoints",
        "c2r.adapters.engines",
        "c2r.reporting",
        "c2r.sweeps",
        "c2r.tasks",
        "c2r.training",
    ]
)


@dataclass(frozen=True)
class Child:
    """A command that runs in a session of its own; its output goes to two files."""

    process: BaseProcess
    started: float
    log: Path

    @classmethod
    def start(cls, arguments, log, folder=".", environment=()):
        """Forks; `arguments` are those of `c2r`, which works in `folder`."""
        started = time.monotonic()
        words = list(map(str, arguments))
        process = _FORKING.Process(target=_work, args=(words, log, folder, dict(environment)))
        process.start()
        return cls(process, started, log)

    @property
    def pid(self):
        """Of the process and its session."""
        return self.process.pid

    def send(self, number):
        """Sends a signal; to all of its session where that is Ctrl-C, as a terminal does."""
        if number == signal.SIGINT:
            os.killpg(self.pid, number)
        else:
            os.kill(self.pid, number)

    def wait(self, seconds):
        """The exit status, negative for a signal; None where it has not ended in time."""
        self.process.join(seconds)
        return self.process.exitcode

    def end(self):
        """Kills what is left of it, stopped before it had a session perhaps, and of its session."""
        self.process.kill()
        for pid in self.session():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.join()

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


def _work(arguments, log, folder, environment):
    status = 1
    try:
        torch.set_num_threads(1)  # as the tests themselves
        sys.modules["__main__"] = ModuleType("__main__")  # workers need not load this program
        os.setsid()
        os.chdir(folder)
        os.environ.update(environment)
        for number, name in ((1, "out"), (2, "err")):
            file = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(file, number)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", 1) for number in (1, 2))
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)
        status = run_command(arguments)
    except BaseException:  # noqa: BLE001 - told as any process tells it
        sys.excepthook(*sys.exc_info())
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
