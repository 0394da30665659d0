"""Whether a serving engine routes and answers as transformers does under the same plan.

The engine's experts are replayed in transformers, token by token. So each layer is judged by the
input that it would have had in the engine, and the answers by the same experts.
"""

import json
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from c2r.adapters.huggingface import check_ids, find_sites, replay
from c2r.errors import InputError, ModelError
from c2r.serving.binding import layer_number

_PROGRAM = Path(__file__).with_name("vllm_program.py")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Answer:
    """What an engine gave for sequences of token ids, `tokens` in all.

    Attributes:
        expert_ids: the chosen experts of each MoE layer by its number, `[tokens, k]`.
        log_probs: of each next token, `[tokens - sequences]`; None where not known.
        constrained: numbers of the layers that chose by a plan's policy; None where not known.
    """

    expert_ids: Mapping[int, np.ndarray]
    log_probs: np.ndarray | None = None
    constrained: frozenset[int] | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerAgreement:
    """How one layer of an engine chose beside that of transformers, given the same input.

    Attributes:
        layer: its number in the model.
        under_plan: it chose by the plan's policy; None where not known.
        other_sets: share of tokens for which it chose another set of experts.
        tied_sets: share of tokens for which it chose others of the same scores: a tie.
    """

    layer: int
    under_plan: bool | None
    other_sets: float
    tied_sets: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """How an engine's answer compares.

    `log_prob_difference` is the largest over all tokens, with the same experts; None where the
    engine's are not known.
    """

    layers: tuple[LayerAgreement, ...]
    log_prob_difference: float | None

    def holds(self, tolerance: float, other_sets: float = 0.0) -> bool:
        """Whether no layer is seen without the plan and neither difference is larger than asked.

        Ties do not count.
        """
        is_near = self.log_prob_difference is None or self.log_prob_difference <= tolerance
        return is_near and all(
            layer.under_plan is not False and layer.other_sets <= other_sets
            for layer in self.layers
        )


def compare(model: Any, sequences: Sequence[Tensor], found: Answer) -> Agreement:
    """How the answer of an engine agrees with a transformers model, constrained or not.

    Args:
        model: the same model.
        sequences: its token ids, each `[tokens]`.
        found: what the engine gave for them.

    Raises:
        ModelError: the model's layers have no numbers, or its routers cannot be replayed.
        InputError: the engine has other layers, experts, or routed another number of tokens.
    """
    for sequence in sequences:
        check_ids(model, sequence)
    numbers = [_number(site.name) for site in find_sites(model)]
    num_tokens = sum(len(sequence) for sequence in sequences)
    for number in numbers:
        shape = np.shape(found.expert_ids.get(number, ()))
        if shape[:1] != (num_tokens,):
            raise InputError(
                f"the engine shows the choice of {shape[0] if shape else 0} tokens in layer "
                f"{number}, of {num_tokens} that were given; compare the same model and text, all "
                "layers in one process"
            )
    log_probs = []
    given = [torch.from_numpy(found.expert_ids[number].astype(np.int64)) for number in numbers]
    with torch.no_grad(), replay(model, given) as replayed:
        for sequence in sequences:
            ids = sequence[None]
            logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
            scored = logits.float().log_softmax(-1)[:, :-1]
            log_probs.append(scored.gather(-1, ids[:, 1:, None]).flatten())
    difference = None
    if found.log_probs is not None:
        difference = float(np.abs(torch.cat(log_probs).numpy() - found.log_probs).max())
    bound = found.constrained
    layers = tuple(
        LayerAgreement(
            layer=number,
            under_plan=None if bound is None else number in bound,
            other_sets=layer.num_other / num_tokens,
            tied_sets=layer.num_tied / num_tokens,
        )
        for number, layer in zip(numbers, replayed.layers, strict=True)
    )
    return Agreement(layers=layers, log_prob_difference=difference)


def _number(path: str) -> int:
    number = layer_number(path)
    if number is None:
        raise ModelError(f"the router {path} is in no numbered layer; it is not compared")
    return number


def answer_of_vllm(python: str | Path, model: str | Path, sequences: Sequence[Tensor]) -> Answer:
    """vLLM's answer to sequences of one length, in float32.

    Args:
        python: the interpreter of an environment that holds vLLM and c2r.
        model: a model folder.
        sequences: token ids, each `[tokens]`.

    Raises:
        InputError: there is no such interpreter.
        ModelError: vLLM or c2r in it refused the model, or could not be started.
    """
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.save(folder / "ids.npy", torch.stack(list(sequences)).numpy())
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
        log_probs=arrays.pop("log_probs").ravel(),
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
