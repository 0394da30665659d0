"""All processes as groups of as many ranks as a plan has: data parallel times expert parallel."""

from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh

from c2r.errors import PlanMismatchError
from c2r.parallel.comm import ProcessGroupComm


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Mesh:
    """The processes, seen from one of them.

    The experts are spread over the ranks of each group, in every group in the same way. Process
    g * R + r is rank r of group g: neighbours are of the same group.

    Attributes:
        world: all processes.
        ranks: those of this process's group; `ranks.size` is R.
        peers: those that hold the same experts as this one, one in each group.
    """

    world: ProcessGroupComm
    ranks: ProcessGroupComm
    peers: ProcessGroupComm

    @property
    def num_groups(self) -> int:
        """Groups, each of which holds every expert."""
        return self.peers.size

    @property
    def group(self) -> int:
        """The number of this process's group."""
        return self.peers.rank

    def to_torch(self) -> DeviceMesh:
        """The same as torch's mesh `[groups, ranks]`; every process must call this."""
        numbers = torch.tensor(dist.get_process_group_ranks(self.world.group))
        return DeviceMesh.from_group(
            [self.peers.group, self.ranks.group],
            self.world.device.type,
            mesh=numbers.view(self.num_groups, self.ranks.size),
            mesh_dim_names=("groups", "ranks"),
        )


def make_mesh(world: ProcessGroupComm, num_ranks: int) -> Mesh:
    """Groups of `num_ranks`; every process of `world` must call this.

    Raises:
        PlanMismatchError: the number of processes is no multiple of `num_ranks`.
    """
    check_multiple(world.size, num_ranks)
    group, rank = divmod(world.rank, num_ranks)
    neighbours = range(group * num_ranks, (group + 1) * num_ranks)
    peers = range(rank, world.size, num_ranks)
    return Mesh(
        world=world,
        ranks=world if world.size == num_ranks else _alone(world, neighbours),
        peers=_alone(world, peers),
    )


def _alone(world: ProcessGroupComm, members: range) -> ProcessGroupComm:
    """Some of the ranks, numbered from 0: a group for itself, not a part of the world."""
    return ProcessGroupComm(world.subset(members).group, world.timeout)


def check_multiple(num_processes: int, num_ranks: int) -> None:
    """Raises `PlanMismatchError` unless so many processes are whole groups of `num_ranks`."""
    if num_processes % num_ranks:
        fitting = [str(n) for n in range(1, num_processes + 1) if num_processes % n == 0]
        started = num_processes // num_ranks * num_ranks or num_ranks
        raise PlanMismatchError(
            f"the plan is for {num_ranks} ranks, {num_processes} are running; start {started} or "
            f"another multiple of {num_ranks}, or plan again for {' or '.join(fitting)} ranks"
        )
