"""All processes that torchrun started, as one group."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from c2r.errors import CommunicationError
from c2r.parallel.comm import Comm, ProcessGroupComm, SplitSizes
from c2r.parallel.faults import first_line, grace_seconds, named_failure
from c2r.parallel.signs import DEFAULT_TIMEOUT, Signs, begin_signs, world_signs


def join_world(
    timeout: float | None = None,
    backend: str | None = None,
    on_lost: Callable[[str], None] | None = None,
) -> ProcessGroupComm:
    """All processes that torchrun started; the first call joins them, later ones find them joined.

    Args:
        timeout: seconds after which a process that does not come, gives no sign of life or does not
            answer is an error; that of the first call where absent, or 60.
        backend: of torch's, for the first call; torch's choice for the machine where absent.
        on_lost: for the first call: see `Signs.on_lost`.

    Raises:
        CommunicationError: not all processes come in time.
    """
    if not dist.is_initialized():
        place = _meeting_place()
        store, own = _reach(place, timeout or DEFAULT_TIMEOUT)
        signs = begin_signs(own, place.rank, place.size, timeout or DEFAULT_TIMEOUT, on_lost)
        signs.meet("the start")
        _make_group(store, signs, backend)
    elif world_signs() is None:  # another has made the group
        default: Any = dist.distributed_c10d._get_default_store()
        rank, size = dist.get_rank(), dist.get_world_size()
        begin_signs(default.clone(), rank, size, timeout or DEFAULT_TIMEOUT, on_lost)
    return ProcessGroupComm(timeout=timeout)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where this rank meets the others: at the store that torchrun keeps, else rank 0."""

    address: str
    port: int
    rank: int
    size: int
    is_kept_here: bool

    @property
    def keeper(self) -> str:
        return "torchrun" if dist.is_torchelastic_launched() else "rank 0"


def _meeting_place() -> _Place:
    try:
        address, port, rank, size = (
            os.environ[name] for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE")
        )
        is_kept_here = int(rank) == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        return _Place(address, int(port), int(rank), int(size), is_kept_here)
    except KeyError as error:
        raise CommunicationError(
            f"{error.args[0]} is not in the environment; start the ranks by torchrun"
        ) from None
    except ValueError as error:
        raise CommunicationError(
            f"the environment tells no place to meet ({error}); start the ranks by torchrun"
        ) from None


def _reach(place: _Place, timeout: float) -> tuple[Any, Any]:
    """Two connections to the store at a place, in a thread: a stopped process never answers."""
    stores: list[Any] = []
    errors: list[Exception] = []

    def connect() -> None:
        try:
            store: Any = dist.TCPStore(  # type: ignore[attr-defined]
                place.address,
                place.port,
                is_master=place.is_kept_here,
                timeout=timedelta(seconds=timeout),
                wait_for_workers=False,  # signs of life tell who does not come
                multi_tenant=True,
            )
            # Started again by torchrun, ranks meet at the same store: what those before wrote there
            # is theirs.
            launch = f"launch {os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}"
            stores.extend(
                dist.PrefixStore(launch, one)  # type: ignore[attr-defined]
                for one in (store, store.clone())
            )
        except (RuntimeError, ValueError, TypeError) as error:
            errors.append(error)

    thread = threading.Thread(target=connect, name="meeting", daemon=True)
    thread.start()
    thread.join(timeout + 1)
    if len(stores) == 2:
        return stores[0], stores[1]
    why = f"timeout {timeout:g} s" + "".join(f"; {first_line(error)}" for error in errors)
    where = f"{place.address}:{place.port}"
    if place.is_kept_here:
        raise CommunicationError(
            f"rank 0 cannot keep {where}, where the ranks meet ({why}); choose another MASTER_PORT"
        )
    raise CommunicationError(
        f"{place.keeper} did not come to the start: nobody answers at {where}, where the ranks "
        f"meet ({why}); look at the output of {place.keeper}"
    )


def _make_group(store: Any, signs: Signs, backend: str | None) -> None:
    seconds = timedelta(seconds=signs.timeout - grace_seconds(signs.timeout))
    options = {"store": store, "rank": signs.rank, "world_size": signs.size, "timeout": seconds}
    try:
        store.set_timeout(seconds)
        dist.init_process_group(backend, **options)
    except RuntimeError as error:
        raise named_failure("the start of the group", error) or error from None


def gather_bytes(
    data: bytes, comm: Comm | None = None, what: str = "the gathering of results"
) -> list[bytes]:
    """The data of every rank, in rank order, on every rank.

    Args:
        data: of this rank, of any length.
        comm: the ranks; where absent all processes, joined by gloo if they are not yet.
        what: what an error calls it.

    Raises:
        CommunicationError: a rank does not answer in time.
    """
    if comm is None:
        comm = join_world(backend="gloo")
    comm.meet(what)
    each = (1,) * comm.size
    lengths = torch.full((comm.size,), len(data), device=comm.device)
    counts = comm.exchange(lengths, SplitSizes(send=each, receive=each, what=what)).wait().tolist()
    own = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(comm.device)
    sizes = SplitSizes(send=(len(data),) * comm.size, receive=counts, what=what)
    received = comm.exchange(own.repeat(comm.size), sizes).wait().cpu()
    return [part.numpy().tobytes() for part in torch.split(received, counts)]


def from_first(make: Callable[[], bytes], comm: Comm | None, what: str) -> bytes:
    """What rank 0 makes, on all ranks; None for one process."""
    if comm is None:
        return make()
    return gather_bytes(make() if comm.rank == 0 else b"", comm, what)[0]


def send_bytes(data: bytes, partner: int | None, comm: Comm, what: str) -> bytes:
    """Sends data to one rank and gives what that rank sent; all ranks call it, in pairs.

    Raises:
        CommunicationError: a rank does not answer in time.
    """
    own = torch.from_numpy(np.frombuffer(data, dtype=np.uint8).copy()).to(comm.device)

    def only(number: int) -> list[int]:
        return [number if rank == partner else 0 for rank in range(comm.size)]

    length = torch.full((sum(only(1)),), len(data), device=comm.device)
    sizes = SplitSizes(send=only(1), receive=only(1), what=what)
    coming = int(comm.exchange(length, sizes).wait().sum())
    sizes = SplitSizes(send=only(len(data)), receive=only(coming), what=what)
    return comm.exchange(own, sizes).wait().cpu().numpy().tobytes()
