"""Processor time of each rank, held to a share by a cgroup of its own."""

import os
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_PERIOD_MICROSECONDS = 10_000  # a rank that has used its share waits this long at most
_LEAST_MICROSECONDS = 1_000  # the kernel takes no smaller share of a period
_MOUNT = Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True, slots=True)
class CoreGroups:
    """A cgroup for each rank; none where they cannot be made, or nothing is to be held.

    Attributes:
        folders: of the cgroups, by rank.
        limit: what they do, in words.
    """

    folders: tuple[Path, ...]
    limit: str


@contextmanager
def core_groups(num_ranks, cores):
    """The cgroups of ranks with so many cores each, removed at the end of the block.

    None for `cores` holds nothing.
    """
    if cores is None:
        yield CoreGroups(folders=(), limit="cores shared by all ranks")
        return
    folders, made = (), []
    try:
        try:
            folders, limit = _made(num_ranks, cores, made)
        except OSError as error:
            limit = f"cores shared by all ranks: no cgroup could be made ({error})"
        yield CoreGroups(folders=folders, limit=limit)
    finally:
        for folder in made:
            folder.rmdir()


def _made(num_ranks, cores, made):
    """The folders, each added to `made` as soon as it is there; and what they do."""
    parent, version = _parent()
    microseconds = max(int(cores * _PERIOD_MICROSECONDS), _LEAST_MICROSECONDS)
    for rank in range(num_ranks):
        folder = parent / f"c2r-emulated-{os.getpid()}-{rank}"
        folder.mkdir()
        made.append(folder)
        if version == 2:
            (folder / "cpu.max").write_text(f"{microseconds} {_PERIOD_MICROSECONDS}")
        else:
            (folder / "cpu.cfs_period_us").write_text(str(_PERIOD_MICROSECONDS))
            (folder / "cpu.cfs_quota_us").write_text(str(microseconds))
    share = microseconds / _PERIOD_MICROSECONDS
    return tuple(made), f"{share:g} cores a rank, by cgroup version {version}"


def _parent():
    """Where cgroups that limit processor time are made, and their version."""
    if (_MOUNT / "cpu").is_dir():
        return _MOUNT / "cpu", 1
    (_MOUNT / "cgroup.subtree_control").write_text("+cpu")
    return _MOUNT, 2
