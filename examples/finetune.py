"""What does training win back? Tunes the embedded model with the constraint and without it.

Takes the plan that make_plan.py wrote.
"""

from transformers import AutoModelForCausalLM, AutoTokenizer

import c2r
from c2r.assets import heldout_files, tiny_folder
from c2r.training import DataSettings, measure_held_out, read_windows, split_windows

SETTINGS = {"num_steps": 5, "batch_size": 8, "learning_rate": 2e-4}


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_folder())
    data = read_windows(heldout_files()[:1], tokenizer, DataSettings(seq_len=256))
    training, held_out = split_windows(data.windows[:48], 0.2)
    plan = c2r.Plan.load("plan.safetensors")
    print(f"{len(training)} windows to train on, {len(held_out)} held out")
    for name, control in (("plain top-k", True), ("constrained", False)):
        model = AutoModelForCausalLM.from_pretrained(tiny_folder(), dtype="float32")
        settings = c2r.FinetuneSettings(**SETTINGS, control=control)
        before = measure_held_out(model, held_out, plan)
        c2r.finetune(model, training, plan, settings)
        after = measure_held_out(model, held_out, plan)
        print(f"trained {name}: under the plan loss {before.loss:.3f} became {after.loss:.3f}")
    print(f"{after.copies:.2f} copies per token")


if __name__ == "__main__":
    main()
