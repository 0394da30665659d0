"""How a command's model is loaded and where it runs: the options of all commands that run one."""

import atexit
import inspect
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from c2r.cli.console import note
from c2r.cli.processes import is_launched, place_on_machine
from c2r.errors import InputError

if TYPE_CHECKING:
    import torch

    from c2r.adapters.huggingface import Source

DTYPES = ("auto", "float32", "bfloat16", "float16")

_OPTIONS: dict[str, Any] = {
    "device": Annotated[
        str | None,
        typer.Option(
            help="cpu, cuda, cuda:1, mps ...", show_default="the GPU where there is one, else cpu"
        ),
    ],
    "device_map": Annotated[
        str | None,
        typer.Option(
            help="Spread over devices, memory and disk, as accelerate does: auto, balanced, "
            "sequential, or JSON of parts and devices.",
            show_default="auto where the model does not fit",
        ),
    ],
    "offload_folder": Annotated[
        Path | None,
        typer.Option(
            help="Where weights are kept that fit in no memory.", show_default="a temporary folder"
        ),
    ],
    "dtype": Annotated[
        str, typer.Option(help="auto (the checkpoint's), float32, bfloat16 or float16.")
    ],
    "attn_implementation": Annotated[
        str | None,
        typer.Option(
            help="eager, sdpa, flash_attention_2 ...; eager is slow and exact.",
            show_default="transformers' choice",
        ),
    ],
    "revision": Annotated[
        str | None,
        typer.Option(help="Branch, tag or commit of a model on the hub.", show_default="main"),
    ],
    "trust_remote_code": Annotated[
        bool,
        typer.Option("--trust-remote-code", help="Run code that comes with the model."),
    ],
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """What a user says of a command's model; its fields are the options that `runs_model` adds."""

    device: str | None = None
    device_map: str | None = None
    offload_folder: Path | None = None
    dtype: str = "auto"
    attn_implementation: str | None = None
    revision: str | None = None
    trust_remote_code: bool = False

    @property
    def origin(self) -> dict[str, Any]:
        """What says which files are read, as `from_pretrained` of model and tokenizer take it."""
        named = {} if self.revision is None else {"revision": self.revision}
        return {**named, "trust_remote_code": True} if self.trust_remote_code else named

    def check(self) -> None:
        """Raises `InputError` for what cannot be, before a model is looked at."""
        if self.dtype not in DTYPES:
            raise InputError(f"--dtype {self.dtype} is unknown; choose {', '.join(DTYPES)}")
        if self.device is not None and self.device_map is not None:
            raise InputError("--device is for one device, --device-map for several; give one")

    def backend(self) -> str:
        """How the ranks of a command exchange: by NCCL between GPUs. Makes the rank's own current.

        Raises `InputError` where the device is not there.
        """
        import torch

        device = self.own_device()
        if device.type != "cuda":
            return "gloo"
        torch.cuda.set_device(device)
        return "cpu:gloo,cuda:nccl"

    def placement(self, location: "str | Source", dtype: "torch.dtype | None") -> dict[str, Any]:
        """What `from_pretrained` is told of devices; nothing for processors with memory enough.

        Raises `InputError` where a device is not there, or a map cannot be read.
        """
        import torch

        from c2r.adapters.huggingface.placement import fits, read_device_map, weight_bytes

        if self.device_map is not None:
            return self._spread(read_device_map(self.device_map))
        device = self.own_device()
        # What is named is taken at the user's word; of several processes each has its own device.
        if self.device is None and not is_launched():
            size = weight_bytes(location, dtype, **self.origin)
            if not fits(size, device):
                note(f"{size / 1e9:.1f} GB of weights do not fit on {device}: --device-map auto")
                return self._spread("auto")
        return {} if device == torch.device("cpu") else {"device_map": {"": device}}

    def _spread(self, device_map: "str | dict[str, Any]") -> dict[str, Any]:
        return {"device_map": device_map, "offload_folder": self.offload_folder or _scratch()}

    def own_device(self) -> "torch.device":
        """The device named, or that of this process. Raises `InputError` if it is not there."""
        from c2r.adapters.huggingface.placement import default_device, read_device

        if self.device is not None:
            return read_device(self.device)
        return default_device(place_on_machine() if is_launched() else 0)


DEFAULT_LOADING = ModelOptions()


def _scratch() -> str:
    """A folder that is gone when this process ends."""
    folder = tempfile.TemporaryDirectory(prefix="c2r-offload-")
    atexit.register(folder.cleanup)
    return folder.name


def runs_model(**defaults: Any) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Gives a command the options of `ModelOptions` in place of its parameter `loading`.

    `defaults` are those of this command where they are others.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        signature = inspect.signature(command)

        @wraps(command)
        def run(**arguments: Any) -> None:
            own = {name: arguments.pop(name) for name in _OPTIONS}
            loading = ModelOptions(**own)
            loading.check()
            command(**arguments, loading=loading)

        parameters: list[inspect.Parameter] = []
        for parameter in signature.parameters.values():
            parameters += _parameters(defaults) if parameter.name == "loading" else [parameter]
        run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {entry.name: entry.annotation for entry in parameters}
        return run

    return decorate


def _parameters(defaults: dict[str, Any]) -> list[inspect.Parameter]:
    own = {field.name: field.default for field in fields(ModelOptions)} | defaults
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    return [
        inspect.Parameter(name, kind, default=own[name], annotation=annotation)
        for name, annotation in _OPTIONS.items()
    ]
