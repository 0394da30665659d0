"""Checks that run on real processes: one start of all ranks for many checks."""

import os
import tempfile
import traceback
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from c2r.parallel import ProcessGroupComm

Check = Callable[[ProcessGroupComm], None]


def run_checks(checks: Mapping[str, Check], num_ranks: int = 4) -> dict[str, str]:
    """Runs every check on every rank; gives the traceback of each that failed, by its name."""
    with tempfile.TemporaryDirectory() as folder:
        mp.start_processes(_work, (num_ranks, Path(folder), checks), nprocs=num_ranks)
        return {path.stem: path.read_text() for path in sorted(Path(folder).glob("*.error"))}


def _work(rank: int, num_ranks: int, folder: Path, checks: Mapping[str, Check]) -> None:
    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), WORLD_SIZE=str(num_ranks), LOCAL_RANK=str(rank))
    os.environ["OMP_NUM_THREADS"] = "1"  # accelerate would set two threads
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder / 'meeting'}",
        rank=rank,
        world_size=num_ranks,
        timeout=timedelta(seconds=60),
    )
    comm = ProcessGroupComm(timeout=30)
    for name, check in checks.items():
        try:
            check(comm)
        except BaseException:
            (folder / f"{name}.error").write_text(f"rank {rank}: {traceback.format_exc()}")
            raise
    dist.barrier()
    dist.destroy_process_group()
