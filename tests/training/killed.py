"""Fine-tunes the embedded model and kills itself, as by kill -9, at a step that it is told.

python killed.py OUT STEP
"""

import json
import os
import signal
import sys
from pathlib import Path

import torch
from transformers import TrainerCallback

from c2r.training import FinetuneSettings, finetune
from tests.training.material import examples, plan_of, tiny


class Killer(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_pre_optimizer_step(self, args, state, control, **_):
        if state.global_step + 1 == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


def tune(out, step):
    model = tiny(attention_dropout=0.1)
    settings = FinetuneSettings(
        num_steps=10,
        batch_size=4,
        accumulation=2,
        learning_rate=1e-3,
        warmup=0.2,
        weight_decay=0.1,
        kl_weight=0.1,
        aux_weight=0.01,
        anneal_steps=7,
        save_every=2,
        log_every=3,
    )
    result = finetune(model, examples(), plan_of(model), settings, out, [Killer(step)])
    (out / "log.json").write_text(json.dumps(result.log))


if __name__ == "__main__":
    torch.set_num_threads(1)
    tune(Path(sys.argv[1]), int(sys.argv[2]))
