"""What a fine-tuning does, as one value that a checkpoint can be compared with."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from c2r.errors import InputError

Mode = Literal["full", "router", "lora"]

_COUNTS = (
    "num_steps",
    "num_epochs",
    "batch_size",
    "accumulation",
    "lora_rank",
    "save_every",
    "log_every",
)
_RANGES: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (
    (_COUNTS, lambda value: value >= 1, "a whole number from 1"),
    (("learning_rate", "max_grad_norm"), lambda value: value > 0, "a positive number"),
    (
        ("weight_decay", "kl_weight", "aux_weight", "anneal_steps", "seed"),
        lambda value: value >= 0,
        "0 or more",
    ),
)

_PAPER = {"num_epochs": 2, "learning_rate": 2e-5, "bf16": True}
PRESETS: dict[str, dict[str, Any]] = {
    "paper-qwen": {**_PAPER, "batch_size": 64, "warmup": 0.31},
    "paper-llama": {**_PAPER, "batch_size": 128, "warmup": 0.03},
}
"""What Zhang et al. (NAACL 2025) tuned Qwen1.5-MoE on LIMA with, and LLaMA-MoE on deita-6k.

All parameters, windows of 2,048 tokens, learning rate falling as a cosine. Their released script
for Qwen warms up for 10 steps, of the 32 that LIMA's 1,030 conversations make.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneSettings:
    """How a model is fine-tuned.

    Attributes:
        mode: `full` trains all parameters, `router` only the routers, `lora` adapters of the
            linear layers, and the routers.
        freeze_routers: routers do not train, in `full` and `lora` mode.
        num_steps: optimizer steps; None for as many as `num_epochs` take.
        num_epochs: passes over the windows where `num_steps` is None.
        batch_size: windows per step, over all processes and accumulated batches.
        accumulation: forward passes per step and process, among which its windows are split.
        learning_rate: its peak; it falls to 0 as half a cosine.
        warmup: share of the steps in which it rises to the peak.
        weight_decay: of AdamW, on weights but not on biases and norms.
        max_grad_norm: to which the norm of all gradients is clipped.
        seed: of the order of the windows, and of whatever the model draws.
        kl_weight: weight of the KL divergence from the unconstrained model, nats per predicted
            token; 0 asks no teacher.
        aux_weight: weight of the balance loss; None for the model's own, where its config has
            `output_router_logits`.
        anneal_steps: first steps in which the policy tightens from plain top-k to the plan's.
        control: train without the constraint, all else equal: the baseline to compare with.
        bf16: compute in bfloat16 where torch's autocast does, with weights in their own type.
        gradient_checkpointing: recompute layers for their gradients, to hold less.
        expert_parallel: spread the experts over the processes as the plan places them.
        fsdp: with spread experts, shard these over groups and all else over all processes, by
            FSDP2; in mode `full`.
        lora_rank: of the adapters.
        save_every: steps between checkpoints; None for none.
        async_save: write them beside the training, from a copy in memory.
        log_every: steps between entries of the log.
        report_to: `tensorboard` and `wandb`, where they are to be written.
    """

    mode: Mode = "full"
    freeze_routers: bool = False
    num_steps: int | None = None
    num_epochs: int = 1
    batch_size: int = 16
    accumulation: int = 1
    learning_rate: float = 2e-5
    warmup: float = 0.0
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    seed: int = 0
    kl_weight: float = 0.0
    aux_weight: float | None = None
    anneal_steps: int = 0
    control: bool = False
    bf16: bool = False
    gradient_checkpointing: bool = False
    expert_parallel: bool = False
    fsdp: bool = False
    lora_rank: int = 16
    save_every: int | None = None
    async_save: bool = False
    log_every: int = 10
    report_to: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Refuses what cannot be meant."""
        if self.mode not in get_args(Mode):
            raise InputError(f"mode {self.mode!r} is unknown; choose {', '.join(get_args(Mode))}")
        if self.mode == "router" and self.freeze_routers:
            raise InputError("mode router trains routers only; freeze_routers leaves it nothing")
        if self.fsdp and (self.mode != "full" or not self.expert_parallel):
            raise InputError(
                "fsdp shards what trains beside spread experts; it needs mode full and "
                "expert_parallel"
            )
        if not 0 <= self.warmup < 1:
            raise InputError(f"warmup is {self.warmup}; give a share of the steps, from 0 to 1")
        for names, is_good, wanted in _RANGES:
            for name in names:
                value = getattr(self, name)
                if value is not None and not is_good(value):
                    raise InputError(f"{name} is {value}; give {wanted}")

    @classmethod
    def choose(cls, preset: str | None, given: Mapping[str, Any]) -> "FinetuneSettings":
        """The settings given (None: not given), else the preset's, else the defaults.

        Raises:
            InputError: the preset is unknown, or a setting cannot be meant.
        """
        if preset is not None and preset not in PRESETS:
            raise InputError(f"preset {preset!r} is unknown; choose {', '.join(PRESETS)}")
        chosen = {name: value for name, value in given.items() if value is not None}
        return cls(**{**PRESETS.get(preset or "", {}), **chosen})

    def with_passes_of(self, num_windows: int, num_processes: int) -> "FinetuneSettings":
        """Accumulates even passes of at most that many windows a process; 1 or more."""
        per_process = self.batch_size // num_processes or 1
        sizes = range(min(num_windows, per_process), 0, -1)
        size = next(size for size in sizes if per_process % size == 0)
        return replace(self, accumulation=per_process // size)

    def steps(self, num_windows: int) -> int:
        """Optimizer steps for that many windows."""
        return self.num_steps or -(-num_windows * self.num_epochs // self.batch_size)

    def batch_per_pass(self, num_processes: int) -> int:
        """Windows per forward pass of one process.

        Raises:
            InputError: a step's windows cannot be split evenly.
        """
        parts = self.accumulation * num_processes
        if self.batch_size % parts:
            raise InputError(
                f"batch_size {self.batch_size} cannot be split into {self.accumulation} passes of "
                f"{num_processes} processes; choose a multiple of {parts}"
            )
        return self.batch_size // parts
