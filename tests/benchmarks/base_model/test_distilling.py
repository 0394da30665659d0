"""A tiny mixture learns from its dense model, cut short or not, to the same weights."""

import json
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F

pytest.importorskip("scipy")
from benchmarks.base_model.choices import CHOICES, losses_by_choice
from benchmarks.base_model.distilling import Distillation, OutputDivergence, loss_of
from benchmarks.base_model.texts import Mixture

from .test_splitting import SETTINGS, dense, ids, mixture  # noqa: F401

TRAINING = replace(
    SETTINGS,
    tokens=12 * 2 * 32,
    seq_len=32,
    batch_size=2,
    learning_rate=1e-3,
    choose_every=4,
    save_every=5,
)


def distillation(folder, dense, ids, settings=TRAINING):  # noqa: F811
    student = mixture(dense, ids, settings)
    source = Mixture({"all": ids}, {"all": 1.0}, seed=0)
    return Distillation(folder, dense, student, source, ids[:4], settings)


def curve_in(folder):
    return [json.loads(line) for line in (folder / "figures.jsonl").read_text().splitlines()]


def test_output_divergence_is_the_divergence_with_its_gradient():
    torch.manual_seed(0)
    student, teacher = torch.randn(150, 8, requires_grad=True), torch.randn(150, 8)
    embeddings = torch.randn(20, 8)
    ours = F.linear(student, embeddings).log_softmax(-1)
    theirs = F.linear(teacher, embeddings).log_softmax(-1)
    plain = F.kl_div(ours, theirs, log_target=True, reduction="batchmean")
    found = OutputDivergence.apply(student, teacher, embeddings)
    torch.testing.assert_close(found, plain)
    torch.testing.assert_close(
        torch.autograd.grad(3 * found, student), torch.autograd.grad(3 * plain, student)
    )


def test_it_learns_and_keeps_the_best(tmp_path, dense, ids):  # noqa: F811
    training = distillation(tmp_path / "d", dense, ids)
    assert training.run(is_over=lambda: False)
    curve = curve_in(tmp_path / "d")
    assert [point["step"] for point in curve] == [4, 8, 12]
    assert [point["tokens"] for point in curve] == [256, 512, 768]
    untrained = loss_of(distillation(tmp_path / "untrained", dense, ids).student, ids[:4])
    assert curve[-1]["choosing_loss"] < curve[0]["choosing_loss"] < untrained
    best = min(point["choosing_loss"] for point in curve)
    assert loss_of(training.load_best(), ids[:4]) == pytest.approx(best, abs=1e-2)


def test_cut_short_anywhere_it_goes_on_to_the_same(tmp_path, dense, ids):  # noqa: F811
    whole = distillation(tmp_path / "whole", dense, ids)
    whole.run(is_over=lambda: False)
    for cut in (3, 7):
        folder = tmp_path / str(cut)
        first = distillation(folder, dense, ids)
        assert not first.run(is_over=lambda first=first, cut=cut: first.step == cut)
        again = distillation(folder, dense, ids)
        assert again.step == cut
        assert again.run(is_over=lambda: False)
        for name, ours in again.parameters.items():
            assert torch.equal(ours, whole.parameters[name]), name
        steps = [point["step"] for point in curve_in(folder)]
        assert steps == [4, 8, 12]


def test_a_kill_loses_what_came_after_the_checkpoint_only(tmp_path, dense, ids):  # noqa: F811
    whole = distillation(tmp_path / "whole", dense, ids)
    whole.run(is_over=lambda: False)
    killed = distillation(tmp_path / "d", dense, ids)
    killed._save = lambda: None
    for _ in range(5):
        killed._advance()
    Distillation._save(killed)  # of step 5
    for _ in range(4):
        killed._advance()  # to step 9, past a line of figures
    again = distillation(tmp_path / "d", dense, ids)
    assert again.step == 5
    again.run(is_over=lambda: False)
    assert all(torch.equal(p, whole.parameters[name]) for name, p in again.parameters.items())
    steps = [point["step"] for point in curve_in(tmp_path / "d")]
    assert steps == [4, 8, 12]


def test_losses_by_choice(dense, ids):  # noqa: F811
    found = losses_by_choice(mixture(dense, ids, SETTINGS), ids)
    assert tuple(found) == CHOICES
    assert len({round(loss, 6) for loss in found.values()}) == len(CHOICES)
