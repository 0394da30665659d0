"""The folders of a fine-tuning: the tuned model's, and `<out>.partial` while it trains.

out.partial/
  finetune.json     the request, by which the same run is known again
  checkpoint-40/    see `checkpoint`
  model/            becomes `out`, in one rename: TensorBoard's files, at last the tuned model
"""

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from transformers import TrainerState

from c2r.adapters.huggingface import describe_model
from c2r.artifacts import check_free, open_to_others, write_text
from c2r.errors import InputError
from c2r.plans import Plan
from c2r.training.checkpoint import STATE_FILE, checkpoints
from c2r.training.data import Window
from c2r.training.settings import FinetuneSettings

REQUEST_FILE = "finetune.json"
_NEW = "new"
_FREE = ("save_every", "async_save", "log_every", "report_to", "accumulation")
"""Settings that may differ when a run is resumed; on other processes the windows of a step are
split into other passes."""

Request = dict[str, Any]


def make_request(
    model: Any,
    windows: Sequence[Window],
    plan: Plan,
    settings: FinetuneSettings,
) -> Request:
    """What decides the outcome of a training, but for rounding, as JSON data."""
    chosen = {name: value for name, value in asdict(settings).items() if name not in _FREE}
    return {
        "model": describe_model(model)["model_fingerprint"],
        "plan": plan.fingerprint,
        "data": describe_windows(windows),
        "settings": chosen,
    }


def describe_windows(windows: Sequence[Window]) -> str:
    """Identifies the windows and their order; with lengths, so that no two runs of bytes meet."""
    digest = hashlib.sha256()
    for window in windows:
        for name in ("input_ids", "labels", "position_ids"):
            digest.update(f"{len(window[name])}:".encode())
            digest.update(window[name].numpy().tobytes())
    return digest.hexdigest()[:16]


def work_folder(out: Path) -> Path:
    """Where `out` is made."""
    return out.with_name(f"{out.name}.partial")


def new_folder(out: Path) -> Path:
    """Where the tuned model is written before `publish`."""
    return work_folder(out) / _NEW


def model_folder(out: Path) -> Path:
    """What becomes `out`."""
    return work_folder(out) / "model"


def is_finished(out: Path) -> bool:
    """Whether a model stands in the folder already."""
    return (out / "config.json").exists()


def check_unfinished(out: Path) -> None:
    """Raises `InputError` if a model stands in the folder already."""
    if is_finished(out):
        raise InputError(
            f"{out} holds a model already; load it with c2r.from_pretrained, or choose another "
            "folder"
        )


def claim(out: Path, request: Request) -> bool:
    """Begins the work for a request, or finds it begun by the same one.

    Gives whether it is finished: then nothing is left to do but to read `finished_state`.

    Raises:
        InputError: the folder holds a finished model of another request, another request's run, or
            something else.
    """
    work, left = work_folder(out), out / REQUEST_FILE
    if is_finished(out) and left.exists() and not list(_differences(_read(left), request)):
        _clear_finished(work)
        return True
    check_unfinished(out)
    check_free(out)
    path = work / REQUEST_FILE
    if path.exists():
        differing = ", ".join(_differences(_read(path), request))
        if differing:
            raise InputError(
                f"{work} was begun with {differing}; run it as it was begun, remove it, or choose "
                "another folder"
            )
        return False
    try:
        work.mkdir(parents=True, exist_ok=True)
        is_free = all(path.name.startswith(".") for path in work.iterdir())
    except OSError as error:
        raise InputError(f"cannot make {work}: {error.strerror}; choose another folder") from None
    if not is_free:
        raise InputError(f"{work} exists and is not an empty folder; choose another")
    write_text(path, json.dumps(request, indent=2))
    return False


def _clear_finished(work: Path) -> None:
    """Removes what a run left that was killed after the rename of its model."""
    if work.is_dir():
        left = {path.name for path in work.iterdir()} - {path.name for path in checkpoints(work)}
        if left <= {REQUEST_FILE, _NEW}:
            shutil.rmtree(work, ignore_errors=True)  # another process may do so too


def finished_state(out: Path) -> TrainerState:
    """The Trainer's state of the run that made `out`. Raises `InputError` if it is damaged."""
    path = out / STATE_FILE
    try:
        return TrainerState.load_from_json(str(path))
    except (OSError, ValueError, TypeError) as error:
        raise InputError(f"cannot read {path} ({error}); choose another folder") from None


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


def publish(out: Path, state: Any) -> None:
    """Writes the Trainer's state beside the model in `new_folder`; renames both to `out`.

    Raises:
        OSError: it cannot be written.
    """
    work, final = work_folder(out), model_folder(out)
    final.mkdir(exist_ok=True)
    state.save_to_json(str(final / STATE_FILE))
    shutil.copy2(work / REQUEST_FILE, final)
    for path in new_folder(out).iterdir():
        shutil.rmtree(final / path.name, ignore_errors=True)  # of a run that was killed here
        path.replace(final / path.name)
    open_to_others(final)
    final.replace(out)
    shutil.rmtree(work)
