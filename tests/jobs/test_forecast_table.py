"""A printed plan says at one look what is stale, why, what it costs and what is spared."""

from pathlib import Path

import pytest

from jobs.forecast_table import print_forecast
from pipeline.effort import Prices
from tests.pipeline.living import Living, live


@pytest.fixture
def living(tmp_path: Path) -> Living:
    made = live(tmp_path)
    made.add_pairs(range(2))
    made.apply()
    return made


def printed(
    living: Living,
    capsys: pytest.CaptureFixture[str],
    prices: Prices | None = None,
    workers: int | None = None,
) -> str:
    capsys.readouterr()
    print_forecast(living.plan(), prices or Prices(), workers=workers)
    return capsys.readouterr().out


def row_of(text: str, name: str) -> list[str]:
    """The cells of a class, behind its name."""
    (words,) = [line.split() for line in text.splitlines() if name in line.split()[:2]]
    return words[words.index(name) + 1 :]


def test_a_current_corpus_says_so(living: Living, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(living, capsys)
    assert "everything is current" in text
    assert "spared   100.0% of the" in text
    assert "to do" not in text
    assert "cost" not in text


def test_a_recode_is_told_with_reason_work_cost_and_what_it_spares(
    living: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    living.declare(tokenizer="30")
    text = printed(living, capsys, Prices(per_cpu_hour=3_600_000.0), workers=4)
    shards, records, *_ = row_of(text, "recode")
    assert int(shards) == len(living.tokens())
    assert int(records) == sum(row.num_records for row in living.tokens())
    assert "x image_tokenizer " in text
    assert "cost" in text
    assert "with 4 workers a stage" in text
    assert "`pixelese apply --sample 0.01`" in text
    assert "(cost " in text


def test_what_has_no_rate_is_named(living: Living, capsys: pytest.CaptureFixture[str]) -> None:
    living.declare(text_tokenizer="few")
    text = printed(living, capsys)
    assert "without encode retext: no rate is recorded of that yet" in text
    _, records, work, *_ = row_of(text, "retext")
    assert (int(records), work) == (sum(row.num_records for row in living.tokens()), "?")
    assert "records that a stage after fetch would make anew" in text


def test_a_rule_is_quoted_as_it_is_written(
    living: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    """Brackets in a rule are no markup."""
    living.declare(select={"short": "caption_characters <= 26", "odd": "'[b]' = '[b]'"})
    assert "x rules.odd none -> '[b]' = '[b]'" in printed(living, capsys)


def test_gpu_hours_without_a_price_are_told(
    living: Living, capsys: pytest.CaptureFixture[str]
) -> None:
    from tests.pipeline import corpora

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora.PatchMeans, "numeric", "nvidia_h200-float32-batch64")
        living.declare(tokenizer="30")
        living.apply()
    living.declare(tokenizer="29")
    text = printed(living, capsys, Prices(per_cpu_hour=0.04))
    assert "on GPUs" in text
    assert "give --price-per-gpu-hour" in text
    assert "give --price-per-gpu-hour" not in printed(living, capsys, Prices(per_gpu_hour=3.0))
