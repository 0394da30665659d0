"""Groups of neighbouring experts that a model's routers limit tokens to, from its config."""

from collections.abc import Mapping, Sequence
from typing import Any

_GROUP_KEYS = ("n_group", "num_expert_group")


def num_expert_groups(config: Mapping[str, Any]) -> int:
    """Groups that the routers limit tokens to; 1 where they limit none."""
    # DeepSeek-V2's method for plain top-k, whatever groups the config states.
    if _find(config, ("topk_method",)) == "greedy":
        return 1
    stated = _find(config, _GROUP_KEYS)
    if stated is None:
        stated = _find(_default_config(config), _GROUP_KEYS)
    return int(stated or 1)


def _find(config: Any, keys: Sequence[str]) -> Any:
    """The first value of one of `keys`, at any depth."""
    if not isinstance(config, Mapping):
        return None
    own = (config[key] for key in keys if key in config)
    nested = (_find(value, keys) for value in config.values())
    return next((value for value in (*own, *nested) if value is not None), None)


def _default_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The defaults of transformers for what config.json leaves out."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    family = config.get("model_type")
    return dict(CONFIG_MAPPING[family]().to_dict()) if family in CONFIG_MAPPING else {}
