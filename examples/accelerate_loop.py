"""A training loop of one's own, with accelerate: two lines of it are c2r's.

Takes the plan that make_plan.py wrote. `accelerate launch accelerate_loop.py` runs it on all GPUs.
"""

import torch
from accelerate import Accelerator
from transformers import AutoModelForCausalLM, AutoTokenizer

import c2r
from c2r.assets import heldout_files, tiny_folder
from c2r.text import read_texts, token_batches


def main() -> None:
    accelerator = Accelerator()
    model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype="float32")
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    plan = c2r.Plan.load("plan.safetensors")
    c2r.apply(model, plan)  # before `prepare`, which may shard or wrap the model
    texts = read_texts(heldout_files())
    batches = list(token_batches(texts, tokenizer, seq_len=128, batch_size=8, num_tokens=3072))
    batches *= 2  # epochs
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-4)
    model, optimizer = accelerator.prepare(model.train(), optimizer)
    whole = accelerator.unwrap_model(model)
    for step, batch in enumerate(batches[accelerator.process_index :: accelerator.num_processes]):
        inputs = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        with c2r.capture(whole) as recorder:
            loss = model(**inputs, labels=inputs["input_ids"]).loss
            found = c2r.routing_metrics(recorder.take(), plan)
        accelerator.backward(loss)
        optimizer.step()
        optimizer.zero_grad()
        accelerator.print(
            f"step {step}: loss {loss.item():.3f}, {found['copies_per_token']:.2f} copies per "
            f"token, {100 * found['choices_changed']:.0f} % of the choices changed"
        )
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        whole.save_pretrained("tuned")  # the plan is saved with it
        print(f"{c2r.from_pretrained('tuned').num_parameters():,} parameters saved with the plan")


if __name__ == "__main__":
    main()
