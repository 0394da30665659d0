"""Whether a serving engine answers and routes as transformers does under the same plan."""

import json
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.adapters.huggingface import capture
from c2r.errors import InputError, ModelError
from c2r.serving.binding import layer_number

_PROGRAM = Path(__file__).with_name("vllm_program.py")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What a model gives for token ids `[sequences, tokens]`.

    Attributes:
        log_probs: of each next token, `[sequences, tokens - 1]`.
        expert_ids: the chosen experts of each MoE layer by its number, ascending,
            `[sequences * tokens, k]`.
        constrained: numbers of the layers that chose by a plan's policy; None where not known.
    """

    log_probs: np.ndarray
    expert_ids: Mapping[int, np.ndarray]
    constrained: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAgreement:
    """How one layer of an engine routed beside that of transformers.

    `other_sets` is the share of tokens for which it chose another set of experts.
    """

    layer: int
    under_plan: bool
    other_sets: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How an engine's answer compares; `log_prob_difference` is the largest over all tokens."""

    layers: tuple[LayerAgreement, ...]
    log_prob_difference: float

    def holds(self, tolerance: float, other_sets: float = 0.0) -> bool:
        """Whether all layers run under the plan and neither difference is larger than asked."""
        return self.log_prob_difference <= tolerance and all(
            layer.under_plan and layer.other_sets <= other_sets for layer in self.layers
        )


def answer_of_model(model: Any, ids: Tensor) -> Answer:
    """The answer of a transformers model, constrained or not, to ids `[sequences, tokens]`.

    Raises `ModelError` where the model's layers have no numbers.
    """
    log_probs, routed = [], []
    with torch.no_grad(), capture(model) as recorder:
        for sequence in ids[:, None]:
            logits = model(input_ids=sequence, attention_mask=torch.ones_like(sequence)).logits
            scored = logits.float().log_softmax(-1)[:, :-1]
            log_probs.append(scored.gather(-1, sequence[:, 1:, None]).squeeze(-1))
            routed.append(recorder.take())
    expert_ids = {}
    for position, layer in enumerate(routed[0].layers):
        number = layer_number(layer.name)
        if number is None:
            raise ModelError(f"the router {layer.name} is in no numbered layer; it is not compared")
        chosen = torch.cat([trace.layers[position].expert_ids for trace in routed])
        expert_ids[number] = chosen.sort(-1).values.numpy()
    return Answer(log_probs=torch.cat(log_probs).numpy(), expert_ids=expert_ids)


def answer_of_vllm(python: str | Path, model: str | Path, ids: Tensor) -> Answer:
    """vLLM's answer to ids `[sequences, tokens]`, in float32.

    Args:
        python: the interpreter of an environment that holds vLLM and c2r.
        model: a model folder.
        ids: token ids.

    Raises:
        InputError: there is no such interpreter.
        ModelError: vLLM or c2r in it refused the model, or could not be started.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "ids.npy", ids.numpy())
        out = folder / "out.npz"
        job = {"model": str(model), "ids": str(folder / "ids.npy"), "out": str(out)}
        (folder / "jobs.json").write_text(json.dumps([job]), encoding="utf-8")
        command = [str(python), "-P", str(_PROGRAM), str(folder / "jobs.json")]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise InputError(f"python {python} cannot be started: {error.strerror}") from error
        if not out.exists():
            raise ModelError(f"vLLM did not answer: {_reason(out, done.stdout + done.stderr)}")
        with np.load(out) as arrays:
            return _read(dict(arrays))


def _read(arrays: dict[str, Any]) -> Answer:
    return Answer(
        log_probs=arrays.pop("log_probs"),
        constrained=frozenset(arrays.pop("constrained").tolist()),
        expert_ids={int(number): ids for number, ids in arrays.items()},
    )


def _reason(out: Path, printed: str) -> str:
    """The most telling line: an error of ours where there is one, else the last."""
    told = Path(f"{out}.error")
    lines = [line.strip() for line in printed.splitlines() if line.strip()]
    if told.exists():
        lines.append(told.read_text(encoding="utf-8"))
    ours = [line.partition("c2r.errors.")[2] for line in lines if "c2r.errors." in line]
    return (ours or lines or ["it printed nothing"])[-1]


def compare(expected: Answer, found: Answer) -> Agreement:
    """How `found`, of an engine, agrees with `expected`, of transformers, on the same ids.

    Raises `ModelError` where they have other layers or routed another number of tokens.
    """
    layers = []
    for number, ids in sorted(expected.expert_ids.items()):
        others = found.expert_ids.get(number)
        if others is None or others.shape != ids.shape:
            shape = "nothing" if others is None else list(others.shape)
            raise ModelError(
                f"layer {number} routed {list(ids.shape)} here and {shape} in the engine; compare "
                "the same folder, with all of its layers in one process"
            )
        layers.append(
            LayerAgreement(
                layer=number,
                under_plan=found.constrained is not None and number in found.constrained,
                other_sets=float((ids != others).any(-1).mean()),
            )
        )
    difference = float(np.abs(expected.log_probs - found.log_probs).max())
    return Agreement(layers=tuple(layers), log_prob_difference=difference)
