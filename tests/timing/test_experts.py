"""Experts of an emulated device take the time of their rows, and no more in the long run."""

import time

import torch

from c2r.timing import DeviceRate, EmulatedExperts


def test_emulated_experts_take_the_time_of_their_rows_and_leave_them():
    experts = EmulatedExperts(DeviceRate(rows_per_second=1000))
    rows = torch.randn(20, 4, requires_grad=True)
    started = time.perf_counter()
    output = experts(rows, torch.tensor([20]))
    forward = time.perf_counter() - started
    assert torch.equal(output, rows) and forward >= 0.02
    output.sum().backward()
    assert time.perf_counter() - started >= 0.02 + 0.04
    assert torch.equal(rows.grad, torch.ones_like(rows))


def clock(monkeypatch, oversleep):
    """Replaces the clock by one whose sleeps are too long; gives what it shows, in a list."""
    now = [0.0]

    def sleep(seconds):
        now[0] += seconds + oversleep

    monkeypatch.setattr(time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return now


def test_what_a_sleep_takes_too_long_the_next_takes_less(monkeypatch):
    now = clock(monkeypatch, oversleep=0.002)
    experts = EmulatedExperts(DeviceRate(rows_per_second=1000))
    for _ in range(100):
        experts.take(10, products=1)
    assert 1.0 <= now[0] < 1.0 + 0.0021


def test_a_debt_longer_than_a_start_is_paid_by_several(monkeypatch):
    now = clock(monkeypatch, oversleep=0.005)
    experts = EmulatedExperts(DeviceRate(rows_per_second=1000))
    for _ in range(30):
        experts.take(2, products=1)
    assert 0.06 <= now[0] < 0.06 + 0.0051


def test_every_start_takes_its_launch(monkeypatch):
    now = clock(monkeypatch, oversleep=0.0)
    EmulatedExperts(DeviceRate(rows_per_second=1000, launch_seconds=0.5)).take(100, products=2)
    assert round(now[0], 9) == 0.5 + 0.2
