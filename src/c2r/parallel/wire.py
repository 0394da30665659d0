"""What rows look like on the way."""

from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

FP8_BLOCK = 128
"""Values that share one scale, as DeepSeek-V3 quantises what it sends (arXiv 2412.19437, 3.3)."""


class Codec(Protocol):
    """Turns rows into what is sent, and back; the number of rows stays."""

    def encode(self, rows: Tensor) -> Tensor:
        """What is sent for `rows`; the same tensor where nothing is to be done."""
        ...

    def decode(self, wire: Tensor, rows: Tensor) -> None:
        """Writes what was received into `rows`."""
        ...


class _Raw:
    """Rows as they are."""

    def encode(self, rows: Tensor) -> Tensor:
        return rows

    def decode(self, wire: Tensor, rows: Tensor) -> None:
        rows.copy_(wire)


RAW: Codec = _Raw()


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TaggedCodec:
    """Float values `[n]` with an int16 tag each, packed into bytes: one message instead of two.

    Attributes:
        send: `[n]` int16, the tags to send.
        receive: `[rows received]` int16, which `decode` fills with the tags of the others.
    """

    send: Tensor
    receive: Tensor

    def encode(self, rows: Tensor) -> Tensor:
        """Bytes `[n, itemsize + 2]`."""
        return torch.cat([_bytes(rows), _bytes(self.send)], dim=1)

    def decode(self, wire: Tensor, rows: Tensor) -> None:
        """Fills the values and `receive`."""
        rows.copy_(_values(wire[:, :-2], rows.dtype).flatten())
        self.receive.copy_(_values(wire[:, -2:], torch.int16).flatten())


class Fp8Codec:
    """Rows as 8-bit floats (e4m3) with a float32 scale for every 128 values.

    A row of h values takes `h + 4 * ceil(h / 128)` bytes; values keep about 4 binary digits.
    """

    def encode(self, rows: Tensor) -> Tensor:
        """Bytes `[n, h + 4 * blocks]`."""
        blocks = _blocks(rows.float())
        # Each block is stretched over the whole range of e4m3; `tiny` keeps zeros from 0 / 0.
        largest = torch.finfo(torch.float8_e4m3fn).max
        scales = blocks.abs().amax(-1).clamp(min=torch.finfo(torch.float32).tiny) / largest
        values = (blocks / scales[..., None]).clamp(-largest, largest).to(torch.float8_e4m3fn)
        # The padding of the last block is not sent; `decode` pads again.
        flat = values.view(torch.uint8).flatten(1)[:, : rows.shape[1]]
        return torch.cat([flat, _bytes(scales)], dim=1)

    def decode(self, wire: Tensor, rows: Tensor) -> None:
        """Fills `rows` `[n, h]`."""
        width = rows.shape[1]
        values = _values(wire[:, :width], torch.float8_e4m3fn).float()
        scales = _values(wire[:, width:], torch.float32)
        rows.copy_((_blocks(values) * scales[..., None]).flatten(1)[:, :width])


def _blocks(rows: Tensor) -> Tensor:
    """`[n, blocks, 128]`, the last block padded with zeros."""
    num_blocks = -(-rows.shape[1] // FP8_BLOCK)
    padding = num_blocks * FP8_BLOCK - rows.shape[1]
    return F.pad(rows, (0, padding)).view(len(rows), num_blocks, FP8_BLOCK)


def _bytes(values: Tensor) -> Tensor:
    """`[n, bytes per row]` uint8."""
    width = values.element_size() * (values.shape[1] if values.ndim > 1 else 1)
    return values.contiguous().view(torch.uint8).view(len(values), width)


def _values(wire: Tensor, dtype: torch.dtype) -> Tensor:
    """`[n, values per row]` of bytes; copied, for a slice need not be aligned to the type."""
    return wire.clone(memory_format=torch.contiguous_format).view(dtype)
