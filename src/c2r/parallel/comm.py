"""The only place that knows ranks: exchange between the processes that torchrun started."""

import torch
import torch.distributed as dist


def gather_bytes(data: bytes) -> list[bytes]:
    """The data of every rank, in rank order, on every rank; starts a gloo group where none is."""
    if not dist.is_initialized():
        dist.init_process_group("gloo")
    lengths = [torch.zeros(1, dtype=torch.int64) for _ in range(dist.get_world_size())]
    dist.all_gather(lengths, torch.tensor([len(data)]))
    longest = int(max(lengths))
    padded = torch.frombuffer(bytearray(data.ljust(longest, b"\0")), dtype=torch.uint8)
    received = [torch.empty(longest, dtype=torch.uint8) for _ in lengths]
    dist.all_gather(received, padded)
    return [
        block[: int(length)].numpy().tobytes()
        for block, length in zip(received, lengths, strict=True)
    ]
