"""Where the time of a step goes."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from c2r.parallel import ProcessGroupComm
from c2r.parallel.comm import SplitSizes
from c2r.timing.clocks import Stopwatch


class Meter:
    """Where the time of a step goes. `phase` is on which side of the experts the step is."""

    def __init__(self) -> None:
        self.watch = Stopwatch()
        self.phase = "dispatch"

    def begin(self) -> None:
        """A step begins."""
        self.phase = "dispatch"
        self.watch.start()

    def end(self) -> None:
        """A step ends."""
        self.watch.lap("reorder")

    def waiting(self) -> None:
        """Waiting for an exchange begins."""
        self.watch.lap("reorder")

    def waited(self) -> None:
        """Waiting is over."""
        self.watch.lap(self.phase)

    def around(self, experts: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
        """`experts`, its time and that of its backward counted as compute."""

        def clocked(rows: Tensor, counts: Tensor) -> Tensor:
            self.watch.lap("reorder")
            output = experts(_boundary(rows, self._cross("compute", "dispatch")), counts)
            output = _boundary(output, self._cross("reorder", "combine"))
            self.watch.lap("compute")
            self.phase = "combine"
            return output

        return clocked

    def _cross(self, name: str, phase: str) -> Callable[[], None]:
        def cross() -> None:
            self.watch.lap(name)
            self.phase = phase

        return cross


class _Boundary(torch.autograd.Function):
    """Calls back when the gradient passes."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, cross: Callable[[], None]) -> Tensor:
        ctx.cross = cross
        return rows.view_as(rows)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.cross()
        return grad, None


def _boundary(rows: Tensor, cross: Callable[[], None]) -> Tensor:
    result: Tensor = _Boundary.apply(rows, cross)  # type: ignore[no-untyped-call]
    return result


class ClockedComm(ProcessGroupComm):
    """The default group; tells the meter how long exchanges are waited for."""

    def __init__(self, meter: Meter, group: Any = None) -> None:
        super().__init__(group)
        self.meter = meter

    def subset(self, members: Sequence[int]) -> "ClockedComm":
        """See `ProcessGroupComm.subset`."""
        comm = ClockedComm(self.meter, super().subset(members).group)
        comm.members = tuple(members)
        return comm

    def finish(self, work: Any, sizes: SplitSizes) -> None:
        """See `ProcessGroupComm.finish`."""
        self.meter.waiting()
        super().finish(work, sizes)
        self.meter.waited()
