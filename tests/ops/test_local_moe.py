import torch

from c2r.ops.grouped_linear import grouped_linear
from c2r.ops.local_moe import local_moe


def some_layer(dtype, device="cpu"):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(6, 4, generator=generator, dtype=dtype)
    weight = torch.randn(3, 4, 4, generator=generator, dtype=dtype)
    ids = torch.tensor([[0, 2], [2, 0], [0, 2], [2, 0], [0, 2], [2, 0]])  # expert 1 is never used
    weights = torch.rand(6, 2, generator=generator, dtype=dtype)
    return [tensor.to(device) for tensor in (hidden, ids, weights, weight)]


def run(hidden, ids, weights, weight):
    def experts(rows, counts):
        return grouped_linear(rows, weight, counts)

    return local_moe(hidden, ids, weights, experts, len(weight))


def test_the_weighted_sum_of_each_tokens_experts():
    hidden, ids, weights, weight = some_layer(torch.float64)
    expected = torch.stack(
        [
            sum(w * (row @ weight[e]) for e, w in zip(chosen, factors, strict=True))
            for row, chosen, factors in zip(hidden, ids, weights, strict=True)
        ]
    )
    torch.testing.assert_close(run(hidden, ids, weights, weight), expected)
    assert run(hidden[:0], ids[:0], weights[:0], weight).shape == (0, 4)


def test_gradients_by_finite_differences():
    hidden, ids, weights, weight = some_layer(torch.float64)
    leaves = [tensor.requires_grad_() for tensor in (hidden, weights, weight)]
    assert torch.autograd.gradcheck(lambda h, w, m: run(h, ids, w, m), leaves)


def test_nothing_is_read_back_to_the_host():
    """Tensors without values cannot be read."""
    hidden, ids, weights, weight = some_layer(torch.bfloat16, "meta")
    weight = weight.new_empty(3, 8, 8)
    hidden = hidden.new_empty(6, 8).requires_grad_()
    output = run(hidden, ids, weights.requires_grad_(), weight.requires_grad_())
    output.sum().backward()
    assert hidden.grad.shape == (6, 8) and weights.grad.shape == (6, 2)
