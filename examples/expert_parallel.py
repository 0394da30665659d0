"""Trains with the experts on 4 processes, placed by the plan that make_plan.py wrote.

torchrun --nproc-per-node 4 examples/expert_parallel.py
"""

import torch
import torch.distributed as dist
from transformers import AutoTokenizer

import c2r
from c2r.assets import heldout_files, tiny_folder


def main() -> None:
    plan = c2r.Plan.load("plan.safetensors")
    model = c2r.load_parallel(tiny_folder(), plan, dtype=torch.float32).train()
    c2r.apply(model, plan)
    rank, num_ranks = dist.get_rank(), dist.get_world_size()
    num_own = sum(parameter.numel() for parameter in c2r.expert_parameters(model))
    print(f"rank {rank} holds {num_own:,} parameters of experts", flush=True)

    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    text = heldout_files()[0].read_text(encoding="utf-8")
    batch = tokenizer(text[1024 * rank : 1024 * (rank + 1)], return_tensors="pt")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for step in range(3):
        loss = model(**batch, labels=batch["input_ids"]).loss
        loss.backward()
        c2r.reduce_gradients(model, average=True)
        optimizer.step()
        optimizer.zero_grad()
        mean = loss.detach() / num_ranks
        dist.all_reduce(mean)
        if rank == 0:
            print(f"step {step}: loss {mean:.3f}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
