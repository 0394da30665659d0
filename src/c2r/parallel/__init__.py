"""Expert parallelism: each token sent to the ranks of its experts, the sums brought back.

    dispatcher = make_dispatcher("zero_redundancy", comm=ProcessGroupComm(), placement=placement)
    rows, handle = dispatcher.dispatch(hidden, expert_ids, weights)
    output = dispatcher.combine(experts(rows.hidden, rows.counts), handle)

or `parallel_moe(hidden, expert_ids, weights, experts, dispatcher, num_chunks=2)` for all of it.
`handle.num_rows_sent` tells the rows that went to each rank. docs/words.md explains the words and
draws one token through a dispatch.
"""

from c2r.parallel.agreement import agree, do_together
from c2r.parallel.chunks import fastest_chunks
from c2r.parallel.comm import Comm, ProcessGroupComm, SplitSizes
from c2r.parallel.dispatch import Dispatcher, ExpertRows, Handle, Leg
from c2r.parallel.factory import DISPATCHERS, make_dispatcher
from c2r.parallel.faults import named_failure
from c2r.parallel.layer import parallel_moe
from c2r.parallel.mesh import Mesh, check_multiple, make_mesh
from c2r.parallel.parts import Part, Share, Sharing, parts_beside, remove_parts, share_out
from c2r.parallel.profiles import merge_profiles
from c2r.parallel.sharded import (
    as_part,
    free_gathered,
    is_sharded,
    is_sharded_module,
    keeping_parts,
    own_part,
    own_rows,
    rows_of,
    shard_modules,
    whole,
)
from c2r.parallel.signs import Signs, world_signs
from c2r.parallel.simulated import SimulatedComm, simulate
from c2r.parallel.world import from_first, gather_bytes, join_world

__all__ = [
    "DISPATCHERS",
    "Comm",
    "Dispatcher",
    "ExpertRows",
    "Handle",
    "Leg",
    "Mesh",
    "Part",
    "ProcessGroupComm",
    "Share",
    "Sharing",
    "Signs",
    "SimulatedComm",
    "SplitSizes",
    "agree",
    "as_part",
    "check_multiple",
    "do_together",
    "fastest_chunks",
    "free_gathered",
    "from_first",
    "gather_bytes",
    "is_sharded",
    "is_sharded_module",
    "join_world",
    "keeping_parts",
    "make_dispatcher",
    "make_mesh",
    "merge_profiles",
    "named_failure",
    "own_part",
    "own_rows",
    "parallel_moe",
    "parts_beside",
    "remove_parts",
    "rows_of",
    "shard_modules",
    "share_out",
    "simulate",
    "whole",
    "world_signs",
]
