"""Output folder of a fine-tuning: ownership check, and atomic publication of the tuned model."""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from c2r.adapters.huggingface import describe_model, save_pretrained
from c2r.artifacts import write_text
from c2r.errors import InputError
from c2r.plans import Plan
from c2r.training.checkpoint import checkpoints
from c2r.training.data import Window
from c2r.training.settings import FinetuneSettings

REQUEST_FILE = "finetune.json"
_FREE = ("save_every", "log_every", "report_to")
"""Settings that may differ when a run is resumed."""

Request = dict[str, Any]


def make_request(
    model: Any,
    windows: Sequence[Window],
    plan: Plan,
    settings: FinetuneSettings,
    num_processes: int,
) -> Request:
    """What decides the outcome of a training, as JSON data."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    return {
        "model": describe_model(model)["model_fingerprint"],
        "plan": plan.fingerprint,
        "data": _digest(windows),
        "settings": {**chosen, "num_processes": num_processes},
    }


def _digest(windows: Sequence[Window]) -> str:
    """Identifies the windows and their order; with lengths, so that no two runs of bytes meet."""
    digest = hashlib.sha256()
    for window in windows:
        for name in ("input_ids", "labels", "position_ids"):
            digest.update(f"{len(window[name])}:".encode())
            digest.update(window[name].numpy().tobytes())
    return digest.hexdigest()[:16]


def check_unfinished(out: Path) -> None:
    """Raises `InputError` if a model stands in the folder already."""
    if (out / "config.json").exists():
        raise InputError(
            f"{out} holds a model already; load it with c2r.from_pretrained, or choose another "
            "folder"
        )


def claim(out: Path, request: Request) -> None:
    """Makes the folder for a request, or finds it begun by the same one.

    Raises:
        InputError: the folder holds a finished model, another request's run, or something else.
    """
    check_unfinished(out)
    path = out / REQUEST_FILE
    if path.exists():
        differing = ", ".join(_differences(_read(path), request))
        if differing:
            raise InputError(
                f"{out} was begun with {differing}; run it as it was begun, or choose another "
                "folder"
            )
        return
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder; choose another")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"cannot make {out}: {error.strerror}; choose another folder") from None
    write_text(path, json.dumps(request, indent=2))


def _read(path: Path) -> Request:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {path} ({error}); choose another folder") from None


def _differences(before: Request, now: Request) -> Iterator[str]:
    for name in ("model", "plan", "data"):
        if before.get(name) != now[name]:
            yield f"another {name}" if name != "data" else "other data"
    settings: Mapping[str, Any] = before.get("settings", {})
    for name, value in now["settings"].items():
        if settings.get(name) != value:
            yield f"{name} = {settings.get(name)} instead of {value}"


def publish(
    model: Any, out: Path, state: Any, state_dict: Mapping[str, Tensor] | None = None
) -> None:
    """Writes the constrained model and the Trainer's state, and removes the checkpoints.

    Raises:
        InputError: it cannot be written.
    """
    new = out / ".model"
    shutil.rmtree(new, ignore_errors=True)
    save_pretrained(model, new, state_dict=state_dict)
    state.save_to_json(str(out / "trainer_state.json"))
    # False sorts before True: config.json, by which others know a model, comes last.
    for path in sorted(new.iterdir(), key=lambda path: path.name == "config.json"):
        path.rename(out / path.name)
    new.rmdir()
    for folder in checkpoints(out):
        shutil.rmtree(folder)
