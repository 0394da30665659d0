"""What two processes of one thread each gain over one: the machine's own, and `profile`, `sweep`.

    python benchmarks/two_processes.py --rounds 3

The ceiling is that of two processes that have nothing to do with each other, each with half of the
work: products of matrices, copies in memory, and the command itself on half of the tokens. No
sharing out can gain more. The start is what a command takes besides: twice half of the work, less
all of it.
"""

import argparse
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from functools import partial

from harness import finish, interleave, print_table, ratios, spread

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


def at_work(work, amount, ready, done):
    """One process: seconds of its work, from all ready until it is through."""
    work(1)  # memory is there, and the code is loaded
    ready.wait()
    work(amount)
    done.wait()


def seconds_of_processes(work, amounts):
    """Seconds until as many processes as there are amounts are through with their work."""
    context = multiprocessing.get_context("spawn")
    ready, done = (context.Barrier(len(amounts) + 1) for _ in range(2))
    started = [
        context.Process(target=at_work, args=(work, amount, ready, done)) for amount in amounts
    ]
    for process in started:
        process.start()
    ready.wait()
    before = time.perf_counter()
    done.wait()
    seconds = time.perf_counter() - before
    for process in started:
        process.join()
    return seconds


def seconds_of_commands(words, tokens, launcher=("-m", "c2r")):
    """Seconds until a command is through that runs with each of these numbers of tokens."""
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
        statuses = [process.wait() for process in started]
        seconds = time.perf_counter() - before
    assert not any(statuses), statuses
    return seconds


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
    options = parser.parse_args()
    sides = {}
    for work in (products, copies):
        sides[f"{work.__name__}, one process"] = partial(seconds_of_processes, work, [4])
        sides[f"{work.__name__}, two halves apart"] = partial(seconds_of_processes, work, [2, 2])
    sides |= sides_of("profile", options.tokens) | sides_of("sweep", options.tokens // 8)
    figures = interleave(sides, options.rounds, measure=timed)
    rows = []
    for name, seconds in figures.items():
        base = figures[f"{name.partition(',')[0]}, one process"]
        rows.append({"side": name, "seconds": spread(seconds), "of one": ratios(base, seconds)})
    print_table(rows)
    finish("two_processes", "one process", rows, vars(options))


def timed(run):
    seconds = run()
    print(f"{seconds:.2f} s", file=sys.stderr, flush=True)
    return seconds


if __name__ == "__main__":
    main()
