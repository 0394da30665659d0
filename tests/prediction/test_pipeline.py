"""Chunks that overlap, by hand and against the sum of all parts."""

import pytest

from c2r.prediction.pipeline import chunk_parts, pipeline_time


def test_one_chunk_hides_nothing():
    assert pipeline_time(1, 3.0, 5.0, latency=1.0, launch=0.5) == 4 + 5.5 + 4


def test_two_chunks_by_hand():
    # Out 0-2, out 2-4 beside work 2-7, work 7-12 beside back 7-9, back 12-14.
    assert pipeline_time(2, exchange=4.0, work=10.0) == 14
    # Out 0-5, out 5-10 beside work 5-7, back 10-15 beside work 10-12, back 15-20.
    assert pipeline_time(2, exchange=10.0, work=4.0) == 20


def test_three_chunks_by_hand():
    # Chunks of 1, 2 and 1 rows. Out 0-1, 1-3, 3-4; work 1-4, 4-10, 10-13; back 4-5, 10-12, 13-14.
    assert pipeline_time(3, exchange=4.0, work=12.0) == 14


@pytest.mark.parametrize("num_chunks", [2, 3, 8])
def test_a_fast_device_leaves_the_exchanges(num_chunks):
    found = pipeline_time(num_chunks, exchange=8.0, work=0.5, latency=0.25)
    assert found == pytest.approx(2 * (8 + 0.25 * num_chunks))


@pytest.mark.parametrize("num_chunks", [2, 3, 8])
def test_a_fast_wire_leaves_the_work_and_the_ends(num_chunks):
    found = pipeline_time(num_chunks, exchange=0.1, work=8.0, launch=0.25)
    parts = chunk_parts(num_chunks)
    ends = 2 * 0.1 * parts[0] / sum(parts)
    assert found == pytest.approx(8 + 0.25 * num_chunks + ends)
