"""What two processes of one thread each gain over one: the machine's own, and `profile`, `sweep`.

    python benchmarks/two_processes.py --rounds 3

The ceiling is that of two processes that have nothing to do with each other, each with half of the
work: products of matrices, copies in memory, and the command itself on half of the tokens. No
sharing out can gain more. The start is what a command takes besides: twice half of the work, less
all of it. Beside the seconds on the wall stand the processor seconds of the busiest process, which
a busy machine changes less.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

from harness import children, finish, interleave, print_table, ratios, seconds_used, spread

TOKENS = 442_368
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}


def products(amount):
    """Products of matrices that stay in the cache of a core."""
    import torch

    torch.set_num_threads(1)
    left = torch.randn(256, 256)
    for _ in range(4_000 * amount):
        left @ left


def copies(amount):
    """Copies of more memory than any cache holds."""
    import numpy as np

    source, target = np.ones(32_000_000), np.zeros(32_000_000)
    for _ in range(20 * amount):
        np.copyto(target, source)


def at_work(work, amount, ready, done, end):
    """One process: its work, from all ready until it is through."""
    work(1)  # memory is there, and the code is loaded
    ready.wait()
    work(amount)
    done.wait()
    end.wait()


def seconds_of_processes(work, amounts):
    """Until as many processes as there are amounts are through with their work; see `timed`."""
    context = multiprocessing.get_context("spawn")
    ready, done, end = barriers = [context.Barrier(len(amounts) + 1) for _ in range(3)]
    started = [context.Process(target=at_work, args=(work, n, *barriers)) for n in amounts]
    for process in started:
        process.start()
    ready.wait()
    before = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - before
    used = max(seconds_used(process.pid) for process in started)
    end.wait()
    for process in started:
        process.join()
    return seconds, used


def seconds_of_commands(words, tokens, launcher=("-m", "c2r")):
    """Until a command is through that runs with each of these numbers of tokens; see `timed`."""
    with tempfile.TemporaryDirectory() as folder:
        before = time.perf_counter()
        started = [
            subprocess.Popen(
                [
                    sys.executable,
                    *launcher,
                    *words,
                    "--quiet",
                    "--tokens",
                    str(number),
                    "--out",
                    out,
                ],
                cwd=folder,
                env=ENVIRONMENT,
                stdout=subprocess.DEVNULL,
            )
            for out, number in zip(("first", "second"), tokens, strict=False)
        ]
        used = 0.0
        while any(process.poll() is None for process in started):
            ranks = [pid for process in started for pid in (process.pid, *children(process.pid))]
            used = max([used, *map(seconds_used, ranks)])
            time.sleep(0.02)
        seconds = time.perf_counter() - before
    statuses = [process.returncode for process in started]
    assert not any(statuses), statuses
    return seconds, used


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "c2r")
COMMANDS = {
    "profile": ["profile", "tiny"],
    "sweep": ["sweep", "tiny", "--ranks", "4", "--policy", "priced=0.01,0.03,0.1"],
}


def sides_of(name, tokens):
    """The ways to do one command, as `interleave` takes them."""
    run = partial(seconds_of_commands, COMMANDS[name])
    return {
        f"{name}, one process": partial(run, [tokens]),
        f"{name}, one process, half": partial(run, [tokens // 2]),
        f"{name}, two halves apart": partial(run, [tokens // 2] * 2),
        f"{name}, two ranks": partial(run, [tokens], TORCHRUN),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tokens", type=int, default=TOKENS)
    parser.add_argument("--commands", action="store_true", help="leave out the machine's ceiling")
    options = parser.parse_args()
    sides = {}
    for work in () if options.commands else (products, copies):
        sides[f"{work.__name__}, one process"] = partial(seconds_of_processes, work, [4])
        sides[f"{work.__name__}, two halves apart"] = partial(seconds_of_processes, work, [2, 2])
    sides |= sides_of("profile", options.tokens) | sides_of("sweep", options.tokens // 8)
    figures = interleave(sides, options.rounds, measure=timed)
    rows = []
    for name, seconds in figures.items():
        base = figures[f"{name.partition(',')[0]}, one process"]
        row = {"side": name}
        for column, of in (("wall", 0), ("busiest process", 1)):
            ours, theirs = ([pair[of] for pair in side] for side in (seconds, base))
            row |= {f"{column}, s": spread(ours), f"{column}, times as fast": ratios(theirs, ours)}
        rows.append(row)
    print_table(rows)
    finish("two_processes", "one process", rows, vars(options))


def timed(run):
    """Seconds on the wall, and processor seconds of the busiest process."""
    seconds, used = run()
    print(f"{seconds:.2f} s, {used:.2f} s of a processor", file=sys.stderr, flush=True)
    return seconds, used


if __name__ == "__main__":
    main()
