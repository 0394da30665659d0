"""The mixture learns to answer as the dense model does: next tokens, and hidden states on the way.

All parameters but the embeddings are trained. They are kept in float32; a copy in bfloat16 computes
the gradients. The model that is kept is the best on the choosing text. A checkpoint holds all that
the next step depends on.
"""

import copy
import json
import math
import time

import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from c2r.artifacts import atomic_path
from c2r.cli.console import note

from .masked_experts import use_experts

_CHUNK = 128  # rows of logits at a time: what the caches hold
_LOWEST_RATE = 0.03  # of the peak, at the end
_SMOOTHING = 0.95  # of the losses that are shown


class OutputDivergence(torch.autograd.Function):
    """Mean KL divergence of the student's next-token distribution from the teacher's, in nats.

    Takes last hidden states `[tokens, hidden]` of both, and the output embeddings that they share.
    The gradient is found chunk by chunk with the loss, so that logits are never kept.
    """

    @staticmethod
    def forward(ctx, student, teacher, embeddings):
        gradient = torch.empty_like(student)
        total = 0.0
        for start in range(0, len(student), _CHUNK):
            rows = slice(start, start + _CHUNK)
            ours = F.linear(student[rows], embeddings).float().log_softmax(-1)
            theirs = F.linear(teacher[rows], embeddings).float().log_softmax(-1)
            share = theirs.exp()
            total += (share * (theirs - ours)).sum()
            gradient[rows] = (ours.exp() - share).to(student.dtype) @ embeddings
        ctx.save_for_backward(gradient / len(student))
        return total / len(student)

    @staticmethod
    def backward(ctx, outer):
        (gradient,) = ctx.saved_tensors
        return gradient * outer, None, None


def relative_error(ours, theirs):
    """Mean over layers of the hidden states' squared error over the teacher's square."""
    errors = [
        ((a.float() - b).square().sum(-1) / b.square().sum(-1)).mean()
        for a, b in zip(ours, (state.float() for state in theirs), strict=True)
    ]
    return torch.stack(errors).mean()


@torch.no_grad()
def loss_of(model, windows, batch_size=4):
    """Mean loss in nats per token, products in bfloat16."""
    total = 0.0
    for ids in windows.split(batch_size):
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
        for row, targets in zip(logits, ids[:, 1:], strict=True):
            total += F.cross_entropy(row.float(), targets, reduction="sum").item()
    return total / windows[:, 1:].numel()


def _rate_factor(name, settings):
    """By how much faster than others the parameter of that name learns."""
    if "router" in name:
        return settings.router_rate
    return float(settings.top_k) if "experts.down_proj" in name else 1.0


class Distillation:
    """Training in a folder: `checkpoint.safetensors`, `best.safetensors` and `figures.jsonl`."""

    def __init__(self, folder, dense, student, mixture, choosing, settings):
        folder.mkdir(exist_ok=True)
        self.folder, self.settings = folder, settings
        self.student, self.mixture, self.choosing = student, mixture, choosing
        self.parameters = {  # in float32
            name: p.detach().clone()
            for name, p in student.named_parameters()
            if "embed_tokens" not in name
        }
        student.bfloat16().get_input_embeddings().weight.requires_grad_(False)
        self.teacher = copy.deepcopy(dense).bfloat16().eval()
        use_experts(student, settings.experts)
        self.optimizer = torch.optim.AdamW(
            [
                {"params": [parameter], "factor": _rate_factor(name, settings)}
                for name, parameter in self.parameters.items()
            ],
            betas=(0.9, 0.95),
            weight_decay=0.0,
            fused=True,
        )
        self.step, self.seconds, self.best = 0, 0.0, math.inf
        self.shown = None
        if self._checkpoint.exists():
            self._load()

    @property
    def _checkpoint(self):
        return self.folder / "checkpoint.safetensors"

    @property
    def _figures(self):
        return self.folder / "figures.jsonl"

    def run(self, is_over):
        """Trains until the end or `is_over()`; returns whether the end was reached."""
        while self.step < self.settings.num_steps and not is_over():
            self._advance()
        self._save()
        return self.step >= self.settings.num_steps

    def _advance(self):
        started = time.monotonic()
        divergence, error = self._train_step()
        self.step += 1
        self.seconds += time.monotonic() - started
        now = (divergence, error)
        self.shown = (
            now
            if self.shown is None
            else tuple(
                _SMOOTHING * a + (1 - _SMOOTHING) * b for a, b in zip(self.shown, now, strict=True)
            )
        )
        if self.step % self.settings.choose_every == 0 or self.step == self.settings.num_steps:
            self._choose()
        if self.step % self.settings.save_every == 0:
            self._save()

    def _train_step(self):
        ids = self.mixture.batch(self.step, self.settings.batch_size)
        rate = self._rate()
        for group in self.optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        options = {"input_ids": ids, "use_cache": False, "output_hidden_states": True}
        with torch.no_grad():
            theirs = self.teacher.model(**options)
        ours = self.student.model(**options)
        error = relative_error(ours.hidden_states[1:], theirs.hidden_states[1:])
        divergence = OutputDivergence.apply(
            ours.last_hidden_state.flatten(0, 1),
            theirs.last_hidden_state.flatten(0, 1),
            self.teacher.get_output_embeddings().weight,
        )
        (divergence + self.settings.hidden_weight * error).backward()
        self._update()
        return divergence.item(), error.item()

    def _update(self):
        """Moves the parameters by the gradients that their copies have, and copies them anew."""
        copies = dict(self.student.named_parameters())
        for name, parameter in self.parameters.items():
            parameter.grad = copies[name].grad.float()
            copies[name].grad = None
        torch.nn.utils.clip_grad_norm_(self.parameters.values(), 1.0)
        self.optimizer.step()
        self._copy()

    @torch.no_grad()
    def _copy(self):
        copies = dict(self.student.named_parameters())
        for name, parameter in self.parameters.items():
            copies[name].copy_(parameter)

    def _rate(self):
        done = self.step / self.settings.num_steps
        rising = min(
            1.0, (self.step + 1) / max(1.0, self.settings.warmup * self.settings.num_steps)
        )
        falling = _LOWEST_RATE + (1 - _LOWEST_RATE) * (1 + math.cos(math.pi * done)) / 2
        return self.settings.learning_rate * rising * falling

    def _choose(self):
        """Keeps the model if it is the best so far, and writes a line of figures."""
        loss = loss_of(self.student.eval(), self.choosing)
        self.student.train()
        tokens = self.step * self.settings.batch_size * self.settings.seq_len
        figures = {
            "step": self.step,
            "tokens": tokens,
            "seconds": round(self.seconds, 1),
            "divergence": round(self.shown[0], 4),
            "hidden_error": round(self.shown[1], 4),
            "choosing_loss": round(loss, 4),
        }
        with self._figures.open("a") as file:
            file.write(json.dumps(figures) + "\n")
        note(", ".join(f"{name} {value}" for name, value in figures.items()))
        if loss < self.best:
            self.best = loss
            with atomic_path(self.folder / "best.safetensors") as path:
                save_file(self.parameters, path)

    def _save(self):
        tensors = dict(self.parameters)
        state = self.optimizer.state_dict()["state"]
        for index, entries in state.items():
            tensors |= {f"optimizer.{index}.{name}": entry for name, entry in entries.items()}
        kept = {"step": self.step, "seconds": self.seconds, "best": self.best, "shown": self.shown}
        with atomic_path(self._checkpoint) as path:
            save_file(tensors, path, metadata={"training": json.dumps(kept)})

    def _load(self):
        with safe_open(self._checkpoint, "pt") as file:
            kept = json.loads(file.metadata()["training"])
        tensors = load_file(self._checkpoint)
        state = self.optimizer.state_dict()
        for name, tensor in tensors.items():
            if name.startswith("optimizer."):
                _, index, entry = name.split(".")
                state["state"].setdefault(int(index), {})[entry] = tensor
            else:
                self.parameters[name].copy_(tensor)
        self._copy()
        self.optimizer.load_state_dict(state)
        self.step, self.seconds, self.best = kept["step"], kept["seconds"], kept["best"]
        self.shown = kept["shown"] and tuple(kept["shown"])
        lines = self._figures.read_text().splitlines() if self._figures.exists() else []
        lines = [line for line in lines if json.loads(line)["step"] <= self.step]
        self._figures.write_text("".join(f"{line}\n" for line in lines))

    def load_best(self):
        """The student in float32, with the weights that were the best on the choosing text."""
        best = load_file(self.folder / "best.safetensors")
        self.student.float().load_state_dict(best, strict=False)
        return self.student.eval()
