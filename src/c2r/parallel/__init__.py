"""Work that is spread over processes."""

from c2r.parallel.comm import gather_bytes

__all__ = ["gather_bytes"]
