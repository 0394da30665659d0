import pytest
import torch
import torch.nn.functional as F

from c2r.adapters.huggingface import (
    applied_plan,
    apply,
    load_model,
    load_tokenizer,
    prepare,
    profile,
    remove,
)
from c2r.assets import heldout_files, tiny_folder
from c2r.errors import InputError, ModelError, RoutingError
from c2r.measuring import Tally, measure, measure_plans, unconstrained
from c2r.planning import make_plan, with_policy
from c2r.prediction import predict_traffic
from c2r.results import SweepPoint
from c2r.sweeps import RunningSweep, measure_sensitivity, spread_points
from c2r.text import Text, token_batches
from c2r.traces import ProfileBuilder


@pytest.fixture(scope="module")
def model():
    return load_model(tiny_folder(), dtype=torch.float32)


def batches(num_rows=6, seq_len=64, file=0, batch_size=2):
    content = heldout_files()[file].read_bytes()[: num_rows * seq_len]
    ids = torch.tensor(list(content)).view(-1, batch_size, seq_len)
    return [{"input_ids": part, "attention_mask": torch.ones_like(part)} for part in ids]


@pytest.fixture(scope="module")
def calibrated(model):
    return profile(model, batches(16, 64, file=1))


@pytest.fixture(scope="module")
def placed(calibrated):
    return make_plan(calibrated, num_ranks=4, policy="top_k")


def test_figures_are_those_of_the_constrained_model(model, calibrated, placed):
    """Loss as the model itself gives it, copies as `predict_traffic` counts them."""
    plan = with_policy(placed, calibrated, "budgeted", 0.1)
    found = measure(model, batches(), plan)
    assert applied_plan(model) is None
    for figures, in_force in ((found.reference, placed), (found, plan)):
        apply(model, in_force)
        seen = profile(model, batches())
        with torch.no_grad():
            losses = [model(**batch, labels=batch["input_ids"]).loss for batch in batches()]
        remove(model)
        traffic = predict_traffic(seen, plan).mean
        assert figures.loss == pytest.approx(float(sum(losses)) / len(losses), rel=1e-6)
        assert figures.copies == pytest.approx(traffic.copies_placed)
        assert figures.copies_in_order == pytest.approx(traffic.copies_in_order)
        assert figures.remote_copies == pytest.approx(traffic.remote_copies_placed)
        assert figures.rank_load_max_over_mean == pytest.approx(traffic.rank_load_max_over_mean)
        assert figures.plan_fingerprint == in_force.fingerprint
    assert found.reference.kl == 0 and found.reference.top1_agreement == 1
    assert found.copies < found.reference.copies
    low, high = found.loss_increase_interval
    assert low < found.loss_increase < high
    assert found.loss_increase == pytest.approx(found.loss / found.reference.loss - 1)
    assert (found.policy, found.strength, found.num_ranks) == ("budgeted", 0.1, 4)


def test_kl_is_that_of_the_two_models(model, calibrated, placed):
    plan = with_policy(placed, calibrated, "pruned", 0.3)
    found = measure(model, batches(2), plan)
    (batch,) = batches(2)
    with torch.no_grad():
        before = model(**batch).logits[:, :-1].log_softmax(-1)
        apply(model, plan)
        after = model(**batch).logits[:, :-1].log_softmax(-1)
        remove(model)
    expected = F.kl_div(after, before, reduction="sum", log_target=True) / after[..., 0].numel()
    assert found.kl == pytest.approx(expected.item(), rel=1e-4)


def test_a_pruned_profile_counts_what_is_left(model, calibrated, placed):
    plan = with_policy(placed, calibrated, "pruned", 0.5)
    tally = Tally()
    for _ in measure_plans(model, batches(), [prepare(model, plan)], [tally]):
        pass
    apply(model, plan)
    counted = profile(model, batches())
    remove(model)
    traffic = predict_traffic(counted, plan).mean
    assert tally.measured(plan).copies == pytest.approx(traffic.copies_placed)
    load = counted.layers[0].load.sum()
    assert load == tally.routing.rank_rows[0].sum() < 4 * 6 * 64
    assert (counted.layers[0].coactivation.diagonal() == 0).all()


def test_the_routing_under_each_plan_can_be_profiled_on_the_way(model, calibrated, placed):
    plan = with_policy(placed, calibrated, "priced", 0.1)
    prepared = [prepare(model, entry) for entry in (placed, plan)]
    tallies, builders = [Tally(), Tally()], [ProfileBuilder(), ProfileBuilder()]
    for _ in measure_plans(
        model, batches(), prepared, tallies, lambda index, trace: builders[index].update(trace)
    ):
        pass
    free, constrained = (builder.build() for builder in builders)
    expected = profile(model, batches())
    for ours, theirs in zip(free.layers, expected.layers, strict=True):
        assert (ours.coactivation == theirs.coactivation).all()
    assert constrained.num_tokens == free.num_tokens
    assert predict_traffic(constrained, plan).mean.copies_placed == pytest.approx(
        tallies[1].measured(plan).copies
    )


def test_the_plan_that_was_applied_comes_back(model, calibrated, placed):
    before = with_policy(placed, calibrated, "c2r", 5)
    apply(model, before)
    measure(model, batches(2), with_policy(placed, calibrated, "budgeted", 0.2))
    assert applied_plan(model) is before
    remove(model)


def test_a_sweep_can_stop_after_any_batch_and_go_on(model, calibrated, placed):
    points = [SweepPoint(policy="c2r", strength=5), SweepPoint(policy="priced", strength=0.1)]
    whole = RunningSweep.of(placed, calibrated, points)
    for _ in whole.run(model, batches()):
        pass
    stopped, resumed = (RunningSweep.of(placed, calibrated, points) for _ in range(2))
    run = stopped.run(model, batches())
    next(run)
    run.close()
    assert applied_plan(model) is None and stopped.num_batches == 1
    resumed.restore(stopped.to_json())
    for _ in resumed.run(model, batches()):
        pass
    assert resumed.measured() == whole.measured()
    baseline, c2r, priced = whole.measured()
    assert c2r.copies != priced.copies < baseline.copies
    assert (baseline.policy, priced.policy, priced.strength) == ("top_k", "priced", 0.1)
    low, high = c2r.loss_increase_interval
    assert low < c2r.loss_increase < high


def test_strengths_spread_by_sensitivity(model, calibrated, placed):
    points = [SweepPoint(policy="budgeted", strength=eps) for eps in (0.05, 0.2, 0.4)]
    plans = [with_policy(placed, calibrated, "budgeted", point.strength) for point in points]
    layers = measure_sensitivity(model, batches(), plans)
    assert [layer.strengths.tolist() for layer in layers] == [[0, 0.05, 0.2, 0.4]] * 4
    for layer in layers:
        assert layer.cost[0] == 0 < layer.cost[1] < layer.cost[3]
        assert (layer.copies[:-1] > layer.copies[1:]).all()
    spread = spread_points(model, batches(), placed, calibrated, points)
    assert [point.policy for point in spread] == ["budgeted"] * 3
    assert spread[2].strength == (0.4,) * 4  # the tightest leaves no choice
    made = with_policy(placed, calibrated, "budgeted", spread[1].strength)
    copies = [measure(model, batches(), plan).copies for plan in (made, plans[1])]
    assert copies[0] <= copies[1] * 1.03


def test_without_a_plan_all_is_on_one_rank(model):
    found = measure(model, batches(2))
    assert (found.kl, found.copies, found.remote_copies, found.num_ranks) == (0, 1, 0, 1)
    assert found.reference is None and found.loss_increase == 0.0


def test_no_text(model, placed):
    (batch,) = batches(2, seq_len=1)
    with pytest.raises(InputError, match="no token to predict"):
        measure(model, [batch], placed)
    with pytest.raises(InputError, match="no token to predict"):
        measure(model, [], placed)


def test_nan(placed):
    model = load_model(tiny_folder(), dtype=torch.float32)
    with torch.no_grad():
        model.model.norm.weight.fill_(torch.nan)
    with pytest.raises(ModelError, match="loss is not finite"):
        measure(model, batches(2), placed)
    with torch.no_grad():
        model.model.layers[0].post_attention_layernorm.weight.fill_(torch.nan)
    with pytest.raises(RoutingError, match="NaN scores"):
        measure(model, batches(2), placed)


def test_unconstrained_keeps_the_placement(calibrated, placed):
    plan = with_policy(placed, calibrated, "c2r", 5)
    assert unconstrained(plan).fingerprint == placed.fingerprint


def test_windows_are_rows_and_padding_is_left_out(model, placed):
    texts = [Text(name="a", content="The quick brown fox jumps over the lazy dog. " * 9)]
    parts = token_batches(texts, load_tokenizer(tiny_folder()), seq_len=100, batch_size=3)
    tallies = [Tally()]
    for _ in measure_plans(model, parts, [prepare(model, placed)], tallies):
        pass
    assert tallies[0].num_predicted == [99, 99, 99, 99, 4]
