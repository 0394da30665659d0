"""Messages and progress of a training, and where its log goes."""

from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from transformers import TrainerCallback
from transformers.integrations import TensorBoardCallback

from c2r.errors import InputError
from c2r.parallel import own_part

_TRAINING_COPIES = 3  # of a weight that trains: its gradient, and two moments of AdamW


class Progress(TrainerCallback):  # type: ignore[misc]
    """Says at the beginning what trains and from which step, and advances with every step.

    Args:
        advance: called with the number of steps that were taken.
        note: called with a line for the user.
    """

    def __init__(self, advance: Callable[[int], None], note: Callable[[str], None]) -> None:
        self._advance = advance
        self._note = note

    def on_train_begin(
        self, args: Any, state: Any, control: Any, model: Any = None, **_: Any
    ) -> None:
        """See the class."""
        sizes, num_bytes = {True: 0, False: 0}, 0
        for parameter in model.parameters():
            sizes[parameter.requires_grad] += parameter.numel()
            copies = 1 + _TRAINING_COPIES * parameter.requires_grad
            num_bytes += copies * own_part(parameter).nbytes
        windows = args.per_device_train_batch_size * args.gradient_accumulation_steps
        self._note(
            f"{sizes[True]:,} of {sum(sizes.values()):,} parameters train for {state.max_steps} "
            f"steps of {windows * args.world_size} windows; weights, gradients and AdamW take "
            f"{num_bytes / 1e9:,.2f} GB, activations apart"
        )
        if state.global_step:
            self._note(f"going on from step {state.global_step}")
            self._advance(state.global_step)

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """See the class."""
        self._advance(1)


def tensorboard_callbacks(
    names: tuple[str, ...], out: Path | None, is_first: bool
) -> Iterator[TensorBoardCallback]:
    """The callback that writes TensorBoard files, in `out`, where it is among `names`.

    Raises:
        InputError: a name is unknown, what it names is not installed, or there is no `out`.
    """
    for name in names:
        if name not in ("tensorboard", "wandb"):
            raise InputError(f"report_to {name!r} is unknown; choose tensorboard or wandb")
        if find_spec(name) is None:
            raise InputError(f"{name} is not installed; install it with `pip install {name}`")
    if "tensorboard" not in names:
        return
    if out is None:
        raise InputError("TensorBoard needs a folder for its files; give out")
    if is_first:
        from torch.utils.tensorboard import SummaryWriter

        yield TensorBoardCallback(SummaryWriter(str(out / "tensorboard")))
