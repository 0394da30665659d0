"""Runs beside SGLang's own Python, whose GPU kernels are stubbed: layers with and without a plan.

C2R_PLAN=PLAN python sglang_program.py LOGITS.npy ROUTER.npy     prints one JSON document
"""

import importlib.machinery
import json
import os
import sys
import types
from contextlib import nullcontext
from unittest.mock import MagicMock

import numpy as np
import torch

_KERNELS = ("aiter", "flashinfer", "sgl_kernel", "triton_kernels", "tvm_ffi")
_TORCHVISION = torch.library.Library("torchvision", "FRAGMENT")
GROUPS = {"use_grouped_topk": True, "num_expert_group": 4, "topk_group": 2}
SCALED = {"routed_scaling_factor": 2.5, "apply_routed_scaling_factor_on_output": True}
CONFIGS = {
    "softmax": {"renormalize": False},
    "softmax renormalised": {"renormalize": True},
    "softmax scaled": {"renormalize": True, **SCALED},
    "grouped": {"renormalize": False, **GROUPS},
    "grouped scaled": {"renormalize": True, **GROUPS, **SCALED},
    "sigmoid": {"renormalize": True, "scoring_func": "sigmoid"},
    "biased": {"renormalize": True, "scoring_func": "sigmoid", "bias": True},
    "biased grouped": {"renormalize": True, **GROUPS, **SCALED, "bias": True},
    "biased grouped, scaled later": {
        "renormalize": True,
        **GROUPS,
        "routed_scaling_factor": 2.5,
        "bias": True,
    },
}


class Kernels(types.ModuleType):
    __path__ = ()

    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in _KERNELS:
            return importlib.machinery.ModuleSpec(name, self, is_package=True)
        return None

    def create_module(self, spec):
        return Kernels(spec.name)

    def exec_module(self, module):
        pass


def stub_kernels():
    """Puts stubs in the place of GPU kernels, and of those that torchvision asks torch about."""
    sys.meta_path.append(Finder())
    for name in ("nms", "qnms"):
        _TORCHVISION.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def layers(topk_module, **changes):
    """One `TopK` for each configuration."""
    made = {}
    for name, options in CONFIGS.items():
        options = dict(options)
        if options.pop("bias", False):
            drawn = torch.Generator().manual_seed(7)
            options["correction_bias"] = torch.randn(16, generator=drawn) / 10
        made[name] = topk_module.TopK(**{"top_k": 4, "layer_id": 3, **options, **changes})
    return made


def routed(layer, logits):
    output = layer.forward_native(torch.zeros(len(logits), 8), logits)
    return [output.topk_weights.tolist(), output.topk_ids.tolist()]


def model_of(*layers, **config):
    """What SGLang's loader makes of a model class of these layers."""
    from sglang.srt.model_loader import loader

    named = types.SimpleNamespace(model_type="qwen3_moe", **config)
    model = torch.nn.ModuleList(layers)
    loader.get_model_architecture = lambda _config: (lambda **_options: model, "")
    loader.resolve_shared_experts_config = lambda *_args: None
    loader.check_stage_producers = lambda _model: None
    loader.get_model = lambda: types.SimpleNamespace(override=lambda **_o: nullcontext())
    return loader._initialize_model(
        types.SimpleNamespace(
            hf_config=named, hf_text_config=named, is_draft_model=False, model_path="no/such-model"
        ),
        types.SimpleNamespace(draft_model_idx=None),
    )


class Block(torch.nn.Module):
    """An MoE block as SGLang names its parts."""

    def __init__(self, topk):
        super().__init__()
        self.gate = torch.nn.Linear(8, 16, bias=False)
        self.topk = topk


def load(topk, weight, times=1):
    """What SGLang's loader makes of a model with one block, whose router has this weight."""
    from sglang.srt.model_loader.loader import DefaultModelLoader

    block = Block(topk)
    model = model_of(block)
    model.load_weights = lambda weights: block.gate.load_state_dict(dict(weights))
    for sign in (1, -1)[:times]:
        DefaultModelLoader.load_weights_and_postprocess(
            model, [("weight", sign * weight)], torch.device("cpu")
        )


def without_plan(make):
    """What is refused where no plan is found."""
    from c2r.serving import sglang

    named = os.environ.pop("C2R_PLAN")
    sglang._plan.cache_clear()
    try:
        return make()
    finally:
        os.environ["C2R_PLAN"] = named
        sglang._plan.cache_clear()


def refusal(make):
    try:
        make()
    except Exception as error:  # noqa: BLE001 - told to the test
        return f"{type(error).__name__}: {error}"
    return "nothing"


def main():
    stub_kernels()
    from sglang.srt import runtime_context
    from sglang.srt.configs.shared_experts import SharedExpertsConfig
    from sglang.srt.layers.moe import topk
    from sglang.srt.plugins import load_plugins

    topk.get_model = lambda: types.SimpleNamespace(shared_experts=SharedExpertsConfig())
    topk.resolve_routing_inputs = lambda **_options: (None, None)
    runtime_context.get_server_args = lambda: types.SimpleNamespace(
        model_path="no/such-model", init_expert_location="trivial"
    )
    logits, weight = (torch.from_numpy(np.load(path)) for path in sys.argv[1:])
    plain = {name: routed(layer, logits) for name, layer in layers(topk, is_draft=False).items()}
    load_plugins()
    constrained = layers(topk, is_draft=False)
    draft = topk.TopK(top_k=4, layer_id=3, is_draft=True)
    one = constrained["softmax"]
    triton_kernels = types.SimpleNamespace(is_triton_kernels=lambda: True)
    triton_kernels.is_flashinfer_mxfp4 = lambda: False
    refused = {
        "another layer": lambda: topk.TopK(top_k=4, layer_id=5, is_draft=False),
        "another k": lambda: topk.TopK(top_k=2, layer_id=3, is_draft=False),
        "other experts": lambda: routed(one, logits[:, :8]),
        "a function of the model": lambda: topk.TopK(
            top_k=4, layer_id=3, is_draft=False, custom_routing_function=len
        ),
        "an unknown score": lambda: topk.TopK(
            top_k=4, layer_id=3, is_draft=False, scoring_func="sqrtsoftplus"
        ),
        "a runner that routes": lambda: one.bind_runner_backend(triton_kernels),
        "a bias for each token": lambda: one.forward_native(
            torch.zeros(len(logits), 8), logits, dynamic_expert_bias=torch.zeros(logits.shape)
        ),
        "a layer that is not bound": lambda: model_of(torch.nn.Linear(2, 2)),
        "other router weights": lambda: load(one, -weight),
        "a plan that is not there": lambda: without_plan(lambda: model_of(c2r={})),
    }
    document = {
        "plain": plain,
        "constrained": {name: routed(layer, logits) for name, layer in constrained.items()},
        "bound": refusal(lambda: model_of(one)),
        "loaded": refusal(lambda: load(one, weight)),
        "loaded again": refusal(lambda: load(one, weight, times=2)),
        "draft": draft.topk_config.custom_routing_function is None,
        "refused": {name: refusal(make) for name, make in refused.items()},
    }
    print(json.dumps(document))


if __name__ == "__main__":
    main()
