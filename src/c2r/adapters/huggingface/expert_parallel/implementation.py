"""c2r as an implementation of transformers' own expert parallelism, which 5.23 and later have."""

from typing import Any

import numpy as np
from torch import Tensor, nn
from transformers.distributed.expert_parallel import EPImplementation, EPImplementationInterface

from c2r.adapters.huggingface.expert_parallel.expert_weights import Homes
from c2r.adapters.huggingface.expert_parallel.spread import LocalExperts, ParallelOptions
from c2r.errors import ModelError
from c2r.parallel import ProcessGroupComm


class C2RExpertParallel(EPImplementation):  # type: ignore[misc]
    """transformers' `ep_implementation="c2r"`: contiguous ids, each token sent to a rank once."""

    def __init__(self, experts: nn.Module, ep_mesh: Any, tp_mesh: Any) -> None:
        super().__init__(experts, ep_mesh, tp_mesh)
        self.is_shared_batch = tp_mesh.size() > 1
        comm = ProcessGroupComm(ep_mesh.get_group())
        homes = Homes(placement=np.arange(comm.size).repeat(self.num_local_experts))
        name = type(experts).__name__
        self.local = LocalExperts(experts, name, comm, homes, ParallelOptions(), 1)

    def __call__(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        """See `EPImplementation.__call__`."""
        if self.is_shared_batch:
            raise ModelError(
                f"ep_implementation='c2r' needs a batch of its own on every rank, but "
                f"{self.tp_mesh.size()} ranks share one (tp_size); use fsdp_size and ep_size, or "
                "c2r.load_parallel"
            )
        return self.local(hidden_states, top_k_index, top_k_weights)


EPImplementationInterface.register("c2r", C2RExpertParallel)
