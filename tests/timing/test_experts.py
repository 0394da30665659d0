import time

import torch

from c2r.timing import EmulatedExperts


def test_emulated_experts_take_the_time_of_their_rows_and_leave_them():
    experts = EmulatedExperts(rows_per_second=1000)
    rows = torch.randn(20, 4, requires_grad=True)
    started = time.perf_counter()
    output = experts(rows, torch.tensor([20]))
    forward = time.perf_counter() - started
    assert torch.equal(output, rows) and forward >= 0.02
    output.sum().backward()
    assert time.perf_counter() - started >= forward + 0.04
    assert torch.equal(rows.grad, torch.ones_like(rows))
