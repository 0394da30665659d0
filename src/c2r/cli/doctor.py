"""`c2r doctor`: what this installation can do."""

import importlib.metadata
import importlib.util
import os
import platform

from c2r.cli.console import JsonOption, print_json, print_table

_PACKAGES = (
    "c2r-moe",
    "torch",
    "transformers",
    "safetensors",
    "numpy",
    "mtkahypar",
    "accelerate",
    "triton",
)


def doctor(json: JsonOption = False) -> None:
    """Show versions, devices, and which backends would run."""
    import torch

    versions = {"python": platform.python_version()}
    versions |= {package: _version(package) for package in _PACKAGES}
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    has_partitioner = importlib.util.find_spec("mtkahypar") is not None
    backends = _backends_of_ops() | {
        "placement": "mt-kahypar, then refinement"
        if has_partitioner
        else "refinement only: mtkahypar is not installed (`pip install mtkahypar`)",
    }
    document = {
        "versions": versions,
        "devices": {
            "cuda": devices,
            "cpu_threads": torch.get_num_threads(),
            "cpu_cores": os.cpu_count(),
        },
        "backends": backends,
    }
    if json:
        print_json(document)
        return
    rows = [[name, version] for name, version in versions.items()]
    rows.append(["CUDA devices", ", ".join(devices) or "none"])
    rows.append(["CPU", f"{os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"])
    print_table("c2r doctor", ["what", "found"], rows + [[k, v] for k, v in backends.items()])


def _backends_of_ops() -> dict[str, str]:
    """What computes each operation that has a kernel, and why."""
    import torch

    from c2r.ops.backend import OPS_WITH_KERNELS, choose_backend

    choice = choose_backend(torch.device("cuda" if torch.cuda.is_available() else "cpu", 0))
    return dict.fromkeys(OPS_WITH_KERNELS, f"{choice.backend}: {choice.reason}")


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
