"""The learning rate rises, falls, and ends where it is told."""

import pytest

from trainer.schedule import learning_rate


def test_warm_up_then_cosine() -> None:
    rates = [
        learning_rate(step, peak=2.0, num_steps=100, warmup_steps=10, final_share=0.1)
        for step in range(121)
    ]
    assert rates[0] == pytest.approx(0.2)
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == rates[9] == rates[10] == pytest.approx(2.0)
    assert rates[55] == pytest.approx(1.1)
    assert rates[10:101] == sorted(rates[10:101], reverse=True)
    assert rates[100] == rates[120] == pytest.approx(0.2)


def test_no_warm_up_starts_at_the_peak() -> None:
    rate = learning_rate(0, peak=1.0, num_steps=1, warmup_steps=0, final_share=0.0)
    assert rate == 1.0


def test_a_warm_up_longer_than_the_run_divides_by_nothing() -> None:
    rate = learning_rate(9, peak=1.0, num_steps=5, warmup_steps=9, final_share=0.5)
    assert rate == pytest.approx(0.5)
