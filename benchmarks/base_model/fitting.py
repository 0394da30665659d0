"""Each layer's FFN by itself learns to compute what the dense one does with the same inputs.

It takes a third of a distillation step's time per token: there is no attention and no output.
"""

import torch

_HELD_OUT = 1024  # tokens for the figures
_RISING_STEPS = 5
_LOWEST_RATE = 0.05  # of the peak, at the end


def rate_factor(name, settings):
    """By how much faster than others the parameter of that name learns."""
    if "router" in name:
        return settings.router_rate
    return float(settings.top_k) if "experts.down_proj" in name else 1.0


def ffn_parameters(layer):
    """Of a layer of the mixture, by name: experts, router, and shared expert where there is one."""
    return {
        name: parameter
        for name, parameter in layer.named_parameters()
        if name.startswith(("block_sparse_moe", "shared_mlp"))
    }


def fit_layer(layer, mlp, inputs, settings, seed):
    """Trains the FFN of `layer` in place on inputs `[tokens, hidden]` of the dense one, `mlp`.

    Returns:
        A token's squared error over the square of its dense output, before and after, mean over
        tokens that were not trained on.
    """
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(inputs), generator=generator)
    held_out, trained = inputs[order[:_HELD_OUT]], inputs[order[_HELD_OUT:]]
    optimizer = torch.optim.AdamW(
        [
            {"params": [parameter], "factor": rate_factor(name, settings)}
            for name, parameter in ffn_parameters(layer).items()
        ],
        betas=(0.9, 0.95),
        weight_decay=0.0,
        fused=True,
    )
    batches = [
        rows
        for _ in range(settings.fit_passes)
        for rows in torch.randperm(len(trained), generator=generator).split(settings.fit_batch)
    ]
    with torch.no_grad():
        before = _error(layer, mlp, held_out).item()
    for step, rows in enumerate(batches):
        falling = max(_LOWEST_RATE, 1 - step / len(batches))
        rate = settings.fit_rate * min(1.0, (step + 1) / _RISING_STEPS) * falling
        for group in optimizer.param_groups:
            group["lr"] = rate * group["factor"]
        optimizer.zero_grad()
        _error(layer, mlp, trained[rows]).backward()
        optimizer.step()
    with torch.no_grad():
        return {"before": before, "after": _error(layer, mlp, held_out).item()}


def _error(layer, mlp, inputs):
    with torch.autocast("cpu", torch.bfloat16):
        ours = layer.block_sparse_moe(inputs.bfloat16()[None])
        if layer.shared_mlp is not None:
            ours = ours + layer.shared_mlp(inputs.bfloat16()[None])
        with torch.no_grad():
            theirs = mlp(inputs.bfloat16()[None]).float()
    errors = (ours.float() - theirs).square().sum(-1) / theirs.square().sum(-1)
    return (
        errors.mean()
    )  # of shares: in two layers one token's output is a hundred times the others'
