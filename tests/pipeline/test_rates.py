"""Rates: measured ones, by stage, work and environment; nothing is made up, nothing is lost."""

import pytest

from pipeline.rates import METADATA, Rates, known_rates, spell_rates, spell_work
from pipeline.repair import Repair
from schemas.catalog import ShardRow
from schemas.fingerprint import canonical_json

CPU, GPU = "cpu-avx2-float32-batch64", "nvidia_h200-float32-batch64"


def row(kind: str, seconds: float, num_rows: int, **facts: object) -> ShardRow:
    values = {"signal": "", "split": "train", "parts": "{}", "states": "{}", **facts}
    return ShardRow(
        kind=kind,
        source="web",
        shard="000000",
        ordinal=0,
        path="",
        fingerprint="",
        records="",
        sha256="",
        bytes=0,
        num_rows=num_rows,
        num_records=num_rows,
        made_in_seconds=seconds,
        **values,  # type: ignore[arg-type]
    )


def tokens(
    repair: Repair, seconds: float, records: int, *, numeric: str = CPU, image: str = "a"
) -> ShardRow:
    parts = canonical_json({"image_tokenizer": image, "text_tokenizer": "t", "format": 1}).decode()
    states = spell_work(repair, records)
    return row("tokens", seconds, 1000, states=states, numeric=numeric, parts=parts)


def per_record(rates: Rates, repair: Repair, *, is_text: bool = False) -> float | None:
    rate = rates.of_repair(repair, is_text=is_text)
    return None if rate is None else rate.seconds_per_record


def test_every_stage_tells_its_rate() -> None:
    rates = known_rates(
        [
            row("intake", 1.0, 100),
            row("pairs", 50.0, 100),
            row("signals", 4.0, 100, signal="image"),
            row("signals", 8.0, 100, signal="clip", numeric=GPU),
            row("relations", 2.0, 100),
            row("selected", 1.0, 100),
            row("selected", 1.0, 100, split="validation"),  # the same work, told twice
        ],
        {},
    )
    found = {(rate.stage, rate.work, rate.of): rate for rate in rates}
    assert {what: rate.seconds_per_record for what, rate in found.items()} == {
        ("intake", "", "web"): 0.01,
        ("fetch", "", "web"): 0.5,
        ("measure", "image", ""): 0.04,
        ("measure", "clip", ""): 0.08,
        ("relate", "", ""): 0.02,
        ("select", "", ""): 0.01,
    }
    assert [what for what, rate in found.items() if rate.on_gpu] == [("measure", "clip", "")]
    assert rates.of_rows("fetch", of="another source") is None


def test_a_cut_shard_does_not_tell_what_encoding_takes() -> None:
    rates = known_rates([tokens(Repair.SUBSET, 1.0, 1000)], {})
    assert per_record(rates, Repair.SUBSET) == 0.001
    for repair in (Repair.RETEXT, Repair.EXTEND, Repair.RECODE, Repair.ENCODE):
        assert per_record(rates, repair) is None


def test_what_reads_images_tells_of_all_that_does() -> None:
    rates = known_rates([tokens(Repair.EXTEND, 10.0, 50), tokens(Repair.RETEXT, 1.0, 1000)], {})
    assert per_record(rates, Repair.RECODE) == per_record(rates, Repair.ENCODE) == 0.2
    rates = known_rates([tokens(Repair.EXTEND, 10.0, 50), tokens(Repair.ENCODE, 100.0, 1000)], {})
    assert per_record(rates, Repair.RECODE) == per_record(rates, Repair.EXTEND) == 0.1
    assert per_record(rates, Repair.RETEXT) is None


def test_documents_tell_nothing_of_pairs() -> None:
    rates = known_rates([tokens(Repair.ENCODE, 1.0, 1000, numeric="", image="")], {})
    assert per_record(rates, Repair.ENCODE) is None
    assert per_record(rates, Repair.RETEXT, is_text=True) == 0.001


def test_of_several_environments_the_one_that_did_most_counts() -> None:
    rows = [
        tokens(Repair.ENCODE, 100.0, 100),
        tokens(Repair.ENCODE, 10.0, 1000, numeric=GPU),
        tokens(Repair.ENCODE, 99.0, 5000, numeric=f"{CPU} + {GPU}"),  # nobody knows which it was
    ]
    found = known_rates(rows, {}).of_repair(Repair.RECODE, is_text=False)
    assert found is not None
    assert (found.numeric, found.on_gpu, found.seconds_per_record) == (GPU, True, 0.01)
    # Where the words of a cut shard come from says nothing of where it was cut.
    cut = known_rates([tokens(Repair.SUBSET, 1.0, 10, numeric=GPU)], {})
    rate = cut.of_repair(Repair.SUBSET, is_text=False)
    assert rate is not None
    assert not rate.on_gpu


def test_recorded_rates_count_where_rows_are_silent() -> None:
    recorded = spell_rates(
        known_rates([tokens(Repair.ENCODE, 10.0, 100), tokens(Repair.SUBSET, 5.0, 100)], {})
    )
    rates = known_rates([tokens(Repair.SUBSET, 1.0, 1000)], {METADATA: recorded})
    assert per_record(rates, Repair.ENCODE) == 0.1
    assert per_record(rates, Repair.SUBSET) == 0.001
    assert spell_rates(known_rates([], {METADATA: spell_rates(rates)})) == spell_rates(rates)


@pytest.mark.parametrize("states", ["{}", '{"keep":0}'])
def test_rows_that_do_not_tell_their_work_give_no_rate(states: str) -> None:
    silent = row("tokens", 10.0, 100, states=states, parts='{"image_tokenizer":"a"}', numeric=CPU)
    assert list(known_rates([silent], {})) == []
    assert list(known_rates([row("signals", 1.0, 0, signal="image")], {})) == []
