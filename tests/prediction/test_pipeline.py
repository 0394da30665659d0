"""Chunks that overlap, by hand and against the sum of all parts."""

import pytest

from c2r.prediction.pipeline import pipeline_time


def test_one_chunk_hides_nothing():
    assert pipeline_time(1, exchange=3.0, work=5.0) == 3 + 5 + 3


def test_two_chunks_by_hand():
    # Out 0-2, out 2-4 beside work 2-7, work 7-12 beside back 7-9, back 12-14.
    assert pipeline_time(2, exchange=2.0, work=5.0) == 14
    # Out 0-5, out 5-10 beside work 5-7, back 10-15 beside work 10-12, back 15-20.
    assert pipeline_time(2, exchange=5.0, work=2.0) == 20


def test_a_fast_device_leaves_the_exchanges():
    for chunks in (2, 3, 8):
        assert pipeline_time(chunks, exchange=1.0, work=0.5) == 2 * chunks


def test_a_fast_wire_leaves_the_work():
    for chunks in (2, 3, 8):
        assert pipeline_time(chunks, exchange=0.1, work=1.0) == pytest.approx(chunks + 0.2)
