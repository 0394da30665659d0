import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from c2r.errors import InputError, PlanError, RoutingError
from c2r.parallel import DISPATCHERS, make_dispatcher, simulate
from c2r.parallel.layer import chunk_sizes
from c2r.plans.holders import NO_EXPERTS
from tests.parallel.layers import make_layer

PLACEMENT = [2, 0, 3, 1, 1, 0, 2, 3, 3, 0]  # 3, 2, 2 and 3 experts: 4 ranks do not divide 10
REPLICAS = [[0, 3], [0, 9], [5, 7], [4, 0]]  # beside them; expert 0 is on every rank


def run(layer, name, num_chunks=1, **options):
    nodes = {"num_nodes": 2} if name == "hierarchical" and layer.num_ranks % 2 == 0 else {}
    return simulate(
        layer.num_ranks, lambda comm: layer.run(comm, name, num_chunks, **nodes, **options)
    )


def check(layer, name, num_chunks=1):
    """Output and every gradient are those of one process."""
    outputs = run(layer, name, num_chunks)
    expected = [layer.alone(rank) for rank in range(layer.num_ranks)]
    for output, alone in zip(outputs, expected, strict=True):
        torch.testing.assert_close(output, alone)
    signs = [torch.randn_like(output) for output in outputs]
    ours, theirs = (
        torch.autograd.grad(
            sum((output * sign).sum() for output, sign in zip(results, signs, strict=True)),
            layer.leaves,
        )
        for results in (outputs, expected)
    )
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other)


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 4, 5])
@pytest.mark.parametrize("name", DISPATCHERS)
def test_agrees_with_one_process(name, num_chunks):
    check(make_layer(PLACEMENT, [7, 5, 0, 9], top_k=3), name, num_chunks)


@pytest.mark.parametrize("num_chunks", [1, 3])
@pytest.mark.parametrize("name", DISPATCHERS)
def test_replicas_agree_with_one_process(name, num_chunks):
    layer = make_layer(PLACEMENT, [7, 5, 0, 9], top_k=3).with_replicas(REPLICAS)
    layer.ids[0][1] = -1
    layer.ids[1][:, 0] = -1
    check(layer, name, num_chunks)


@pytest.mark.parametrize("name", DISPATCHERS)
@pytest.mark.parametrize("top_k", [1, 10])
def test_one_expert_or_all(name, top_k):
    check(make_layer(PLACEMENT, [3, 2, 4, 1], top_k=top_k), name)


@pytest.mark.parametrize("name", DISPATCHERS)
def test_all_tokens_to_one_expert(name):
    layer = make_layer(PLACEMENT, [3, 2, 4, 1], top_k=1)
    for ids in layer.ids:
        ids.fill_(7)
    check(layer, name)


@pytest.mark.parametrize("name", DISPATCHERS)
def test_tokens_without_experts(name):
    layer = make_layer(PLACEMENT, [3, 2, 4, 1], top_k=2)
    layer.ids[0][1] = -1
    layer.ids[2][:, 0] = -1
    layer.ids[3].fill_(-1)
    check(layer, name)


@pytest.mark.parametrize("name", DISPATCHERS)
def test_one_rank(name):
    check(make_layer([0, 0, 0], [4]), name)


@settings(max_examples=25)
@given(
    name=st.sampled_from(DISPATCHERS),
    placement=st.lists(st.integers(0, 3), min_size=1, max_size=7),
    num_tokens=st.lists(st.integers(0, 6), min_size=4, max_size=4),
    num_chunks=st.integers(1, 5),
    seed=st.integers(0, 1000),
)
def test_any_placement_and_any_tokens(name, placement, num_tokens, num_chunks, seed):
    placement = [0, 1, 2, 3, *placement]
    top_k = 1 + seed % len(placement)
    check(make_layer(placement, num_tokens, top_k=top_k, seed=seed), name, num_chunks)


@pytest.mark.parametrize("num_nodes", [1, 2])
def test_replicas_send_the_rows_that_the_plan_predicts(num_nodes):
    plain = make_layer(PLACEMENT, [70, 50, 0, 90], top_k=4)
    layer = plain.with_replicas(REPLICAS)
    sent = [handle.num_rows_sent for handle in handles(layer, "zero_redundancy", num_nodes)]
    assert sent == [layer.rows_predicted(rank, num_nodes) for rank in range(4)]
    assert sum(map(sum, sent)) < sum(sum(plain.rows_predicted(rank)) for rank in range(4))


@settings(max_examples=25)
@given(
    name=st.sampled_from(DISPATCHERS),
    num_tokens=st.lists(st.integers(0, 9), min_size=4, max_size=4),
    num_chunks=st.integers(2, 5),
    seed=st.integers(0, 1000),
)
def test_chunks_change_nothing(name, num_tokens, num_chunks, seed):
    layer = make_layer(PLACEMENT, num_tokens, top_k=3, seed=seed)
    for ids in layer.ids:
        ids[::3, seed % 3] = -1
    for whole, cut in zip(run(layer, name), run(layer, name, num_chunks), strict=True):
        torch.testing.assert_close(cut, whole, rtol=1e-12, atol=1e-12)


def test_the_first_and_the_last_chunk_are_small():
    assert [chunk_sizes(12, number) for number in (1, 2, 3, 4)] == [
        [12],
        [6, 6],
        [3, 6, 3],
        [2, 4, 4, 2],
    ]
    assert chunk_sizes(3, 5) == [0, 1, 0, 1, 1]


@pytest.mark.parametrize("replicas", [NO_EXPERTS, [[3], [1], [0], [0]]])
@pytest.mark.parametrize("name", DISPATCHERS)
def test_gradients_by_finite_differences(name, replicas):
    layer = make_layer([1, 0, 3, 2, 1], [2, 1, 0, 2], sizes=(3, 2)).with_replicas(replicas)

    def outputs(*leaves):
        return tuple(output for output in run(layer, name) if len(output))

    assert torch.autograd.gradcheck(outputs, layer.leaves)


@pytest.mark.parametrize("name", DISPATCHERS)
def test_single_precision(name):
    layer = make_layer(PLACEMENT, [40, 30, 50, 20], top_k=4, sizes=(64, 32), dtype=torch.float32)
    for rank, output in enumerate(run(layer, name)):
        assert (output - layer.alone(rank)).norm() <= 1e-5 * layer.alone(rank).norm()


def test_half_precision_is_two_sums_bitwise():
    layer = make_layer(PLACEMENT, [9, 5, 0, 7], top_k=4, sizes=(16, 8), dtype=torch.bfloat16)
    for rank, output in enumerate(run(layer, "zero_redundancy")):
        assert torch.equal(output, two_level(layer, rank))


def two_level(layer, rank):
    """Float32 sum inside each rank in the order chosen, rounded; float32 sum in rank order."""
    hidden, ids, weights = layer.hidden[rank], layer.ids[rank], layer.weights[rank]
    total = torch.zeros(hidden.shape)
    for token in range(len(hidden)):
        for owner in range(layer.num_ranks):
            partial = torch.zeros(hidden.shape[1])
            for expert, weight in zip(ids[token], weights[token], strict=True):
                if layer.placement[expert] == owner:
                    inner = (hidden[token : token + 1] @ layer.first[expert]).tanh()
                    partial += weight.float() * (inner @ layer.second[expert])[0].float()
            total[token] += partial.bfloat16().float()
    return total.bfloat16()


@pytest.mark.parametrize("replicas", [NO_EXPERTS, REPLICAS])
@pytest.mark.parametrize("name", DISPATCHERS)
def test_twice_the_same_bitwise(name, replicas):
    layer = make_layer(PLACEMENT, [9, 5, 0, 7], top_k=4, dtype=torch.float32)
    layer = layer.with_replicas(replicas)
    for first, second in zip(run(layer, name, 4), run(layer, name, 4), strict=True):
        assert torch.equal(first, second)


@pytest.mark.parametrize("name", ["zero_redundancy", "k_fold", "hierarchical"])
def test_a_narrow_type_on_the_way(name):
    layer = make_layer(PLACEMENT, [9, 5, 0, 7], top_k=4, sizes=(160, 6), dtype=torch.float32)
    for dtype, tolerance in ((torch.bfloat16, 1e-2), (torch.float8_e4m3fn, 6e-2)):
        for rank, output in enumerate(run(layer, name, dispatch_dtype=dtype)):
            alone = layer.alone(rank)
            assert output.dtype == torch.float32
            error = (output - alone).norm() / max(alone.norm().item(), 1e-9)
            assert error <= tolerance
            if len(output):
                assert error > 0


def test_gradients_pass_a_narrow_type():
    layer = make_layer(PLACEMENT, [9, 5, 0, 7], sizes=(160, 6), dtype=torch.float32)
    for dtype in (torch.bfloat16, torch.float8_e4m3fn):
        outputs = run(layer, "zero_redundancy", dispatch_dtype=dtype)
        (grad,) = torch.autograd.grad(sum(o.sum() for o in outputs), layer.hidden[0])
        (exact,) = torch.autograd.grad(layer.alone(0).sum(), layer.hidden[0])
        assert (grad - exact).norm() <= 0.1 * exact.norm()


def handles(layer, name, num_nodes=1):
    def dispatch(comm):
        dispatcher = make_dispatcher(
            name,
            comm=comm,
            placement=layer.placement,
            replicas=layer.replicas,
            num_nodes=num_nodes,
        )
        rank = comm.rank
        return dispatcher.dispatch(layer.hidden[rank], layer.ids[rank], layer.weights[rank])[1]

    return simulate(layer.num_ranks, dispatch)


def test_rows_sent_by_hand():
    layer = make_layer([0, 0, 1, 1], [2, 1])
    layer.ids[0].copy_(torch.tensor([[0, 1], [1, 2]]))
    layer.ids[1].copy_(torch.tensor([[3, 2]]))
    assert [h.num_rows_sent for h in handles(layer, "k_fold")] == [(3, 1), (0, 2)]
    assert [h.num_rows_sent for h in handles(layer, "zero_redundancy")] == [(2, 1), (0, 1)]
    assert [h.num_rows_sent for h in handles(layer, "all_gather")] == [(2, 2), (1, 1)]


def test_a_node_gets_a_token_once():
    # Ranks 0 and 1 on one node, 2 and 3 on the other; rank 1's token has experts on 0, 2 and 3.
    layer = make_layer([0, 1, 2, 3], [0, 1, 0, 0], top_k=3)
    layer.ids[1].copy_(torch.tensor([[0, 2, 3]]))
    found = handles(layer, "hierarchical", num_nodes=2)
    assert found[1].legs[0].send == (1, 1)  # once to its own node, once to the other
    assert [h.num_rows_sent for h in found] == [(0,) * 4, (1, 1, 0, 1), (0,) * 4, (0, 0, 1, 1)]
    check(layer, "hierarchical")


def test_side_information_is_small():
    layer = make_layer(np.arange(64) % 8, [64] * 8, top_k=8, sizes=(2, 2), dtype=torch.float32)
    for handle in handles(layer, "zero_redundancy"):
        payload = sum(handle.num_rows_sent) * 1024 * 2
        assert 0 < handle.side_bytes_sent <= 0.03 * payload


@pytest.mark.parametrize("name", DISPATCHERS)
@pytest.mark.parametrize("bad", [10, -2])
def test_ids_out_of_range_are_refused_on_every_rank(name, bad):
    layer = make_layer(PLACEMENT, [3, 2, 4, 1])
    layer.ids[2][1, 0] = bad

    def refused(comm):
        with pytest.raises(RoutingError, match=r"rank 2 chose 1 expert ids out of range in moe\.3"):
            layer.run(comm, name, num_nodes=2, layer="moe.3")

    simulate(4, refused)


def test_without_gradients():
    layer = make_layer(PLACEMENT, [3, 2, 4, 1])
    with torch.no_grad():
        outputs = run(layer, "zero_redundancy")
    assert not any(output.requires_grad for output in outputs)


def test_what_cannot_be_made():
    def make(name="k_fold", placement=(0, 1), **options):
        return simulate(
            2, lambda comm: make_dispatcher(name, comm=comm, placement=placement, **options)
        )

    with pytest.raises(InputError, match="no dispatcher is called 'magic'; choose zero_redundancy"):
        make("magic")
    with pytest.raises(PlanError, match="ranks 0 to 2 of only 2 ranks"):
        make(placement=[0, 2])
    with pytest.raises(PlanError, match="2 ranks cannot be split evenly over 3 nodes"):
        make("hierarchical", num_nodes=3)
    with pytest.raises(PlanError, match=r"shape \(1, 1\) are not those of 2 ranks"):
        make(replicas=[[1]])
    with pytest.raises(PlanError, match="replicas name experts 0 to 2 of only 2"):
        make(replicas=[[2], [0]])
    with pytest.raises(PlanError, match="rank 1 has an expert twice"):
        make(replicas=[[1], [1]])
