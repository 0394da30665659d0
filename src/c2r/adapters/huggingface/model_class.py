"""Which class of transformers loads a checkpoint."""

from pathlib import Path
from typing import Any

import transformers
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedConfig,
    PreTrainedModel,
)

from c2r.adapters.huggingface.sources import hub_options


def read_config(source: str | Path, **kwargs: Any) -> PreTrainedConfig:
    """The configuration of a folder or hub name; of `kwargs` what says which files are read.

    Code that comes with a model runs only where `trust_remote_code` says so. Nothing is asked.
    """
    trust = bool(kwargs.get("trust_remote_code", False))
    return AutoConfig.from_pretrained(str(source), trust_remote_code=trust, **hub_options(kwargs))


def model_class(config: PreTrainedConfig) -> Any:
    """The class that a configuration names, if it generates text; else that of causal models.

    So a multi-modal model is loaded with its other senses, as its checkpoint has them.
    """
    name = next(iter(config.architectures or ()), "")
    named: Any = getattr(transformers, name, None) if name else None
    is_model = isinstance(named, type) and issubclass(named, PreTrainedModel)
    if not is_model or not named.can_generate():
        return AutoModelForCausalLM
    # The auto class knows more of what it maps, such as which configuration a text model takes.
    is_mapped = named is MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    return AutoModelForCausalLM if is_mapped else named


def empty_model(config: PreTrainedConfig, **kwargs: Any) -> PreTrainedModel:
    """The model of a configuration, its weights drawn anew where torch puts tensors now."""
    chosen = model_class(config)
    if chosen is not AutoModelForCausalLM:
        return chosen(config)
    trust = bool(kwargs.get("trust_remote_code", False))
    return AutoModelForCausalLM.from_config(config, trust_remote_code=trust)
