import pytest
import torch
import torch.nn.functional as F
from transformers.models.qwen2_moe.modeling_qwen2_moe import load_balancing_loss_func

from c2r.adapters.huggingface import apply, capture
from c2r.errors import ModelError
from c2r.measuring import unconstrained
from c2r.parallel import simulate
from c2r.traces import LayerTrace, RoutingTrace, ScoreKind
from c2r.training.losses import balance_loss, divergence_sum
from tests.training.material import plan_of, text_bytes, tiny


def layer(ids, scores, kind=ScoreKind.PROBABILITIES):
    return LayerTrace(name="", expert_ids=ids, weights=None, scores=scores, score_kind=kind)


def test_a_balance_by_hand():
    # Experts 0, 0, 1 chosen of three by two tokens that count; the last token is padding.
    ids = torch.tensor([[0, 1], [0, 2], [2, 1]])
    scores = torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.0, 0.0, 1.0]])
    trace = RoutingTrace(layers=(layer(ids, scores),))
    loss = balance_loss(trace, torch.tensor([True, True, False]))
    frequency, probability = (1.0, 0.5, 0.5), (0.6, 0.2, 0.2)
    assert loss.item() == pytest.approx(
        3 * sum(f * p for f, p in zip(frequency, probability, strict=True))
    )


def test_the_mean_over_ranks_that_share_a_batch_is_the_balance_of_the_batch():
    drawn = torch.Generator().manual_seed(0)
    scores = torch.rand(12, 5, generator=drawn)
    ids, mask = scores.topk(2).indices, torch.arange(12) % 5 > 0

    def balance(part, comm=None):
        return balance_loss(
            RoutingTrace(layers=(layer(ids[part], scores[part]),)), mask[part], comm
        )

    parts = [slice(0, 3), slice(3, 12)]
    losses = simulate(2, lambda comm: balance(parts[comm.rank], comm))
    torch.testing.assert_close(sum(losses) / 2, balance(slice(None)))


def test_dropped_experts_and_gates_of_any_size():
    gates = torch.tensor([[2.0, 1.0, 1.0]])
    trace = RoutingTrace(layers=(layer(torch.tensor([[1, 1]]), gates, ScoreKind.GATES),))
    assert balance_loss(trace, torch.tensor([True])).item() == pytest.approx(3 * 0.25)


def test_unlike_layers_are_refused():
    ids = torch.tensor([[0, 1]])
    trace = RoutingTrace(layers=(layer(ids, torch.ones(1, 3)), layer(ids, torch.ones(1, 4))))
    with pytest.raises(ModelError, match=r"layers of 3, 4 experts.*aux_weight"):
        balance_loss(trace, torch.tensor([True]))


def batch():
    ids = torch.tensor([list(text_bytes()[start : start + 24]) for start in (0, 500)])
    mask = torch.ones_like(ids)
    mask[1, 15:] = 0
    return ids, mask


def balance_and_gradients(model, ids, mask):
    model.zero_grad()
    with capture(model, attached=True) as recorder:
        model(input_ids=ids, use_cache=False)
        loss = balance_loss(recorder.take(), mask.flatten().bool())
    loss.backward()
    return loss, {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_without_constraint_it_is_the_models_own():
    model, (ids, mask) = tiny(), batch()
    apply(model, unconstrained(plan_of(model)))
    output = model.model(input_ids=ids, output_router_logits=True, use_cache=False)
    theirs = load_balancing_loss_func(output.router_logits, 32, 4, mask)
    theirs.backward()
    expected = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    loss, gradients = balance_and_gradients(model, ids, mask)
    torch.testing.assert_close(loss, theirs)
    torch.testing.assert_close(gradients, expected, rtol=1e-4, atol=1e-7)


def test_under_a_policy_it_counts_what_was_chosen():
    model, (ids, mask) = tiny(), batch()
    apply(model, plan_of(model, "group_limited", 1))
    output = model.model(input_ids=ids, output_router_logits=True, use_cache=False)
    unaware = load_balancing_loss_func(output.router_logits, 32, 4, mask)
    loss, _ = balance_and_gradients(model, ids, mask)
    assert abs(loss.item() - unaware.item()) > 0.01


def test_recomputed_layers_give_it_the_same_gradient():
    model, (ids, mask) = tiny(), batch()
    apply(model, plan_of(model))
    _, expected = balance_and_gradients(model, ids, mask)
    model.activation_checkpointing_enable({"use_reentrant": False})
    model.train()
    loss, gradients = balance_and_gradients(model, ids, mask)
    assert set(gradients) == set(expected) and loss.requires_grad
    torch.testing.assert_close(gradients, expected, rtol=0, atol=0)


def test_divergence_and_its_gradient():
    logits = torch.randn(2100, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    reference = torch.randn(2100, 7, generator=torch.Generator().manual_seed(1))
    reference[0, 1] = -torch.inf
    expected = F.kl_div(logits.log_softmax(-1), reference.log_softmax(-1).exp(), reduction="sum")
    (gradient,) = torch.autograd.grad(2 * expected, logits)
    ours = divergence_sum(logits, reference)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(torch.autograd.grad(2 * ours, logits)[0], gradient)
