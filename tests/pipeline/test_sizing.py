"""The model of sizes follows its parameters: linear where work is, and never the wrong way."""

from dataclasses import replace

import pytest

from pipeline.sizing import Machines, Prices, Size, Workload, size_of

BILLION = Workload(num_rows=1_000_000_000)


def size(workload: Workload = BILLION, machines: Machines | None = None) -> Size:
    return size_of(workload, machines or Machines(), Prices())


LINEAR = (
    "cpu_hours",
    "gpu_hours",
    "received_bytes",
    "stored_bytes",
    "token_bytes",
    "num_objects",
    "num_reads",
    "relate_bytes",
    "plan_seconds",
    "driver_bytes",
    "compute_cost",
    "request_cost",
    "month_cost",
    "hours",
)


@pytest.mark.parametrize("name", LINEAR)
def test_five_times_the_rows_take_five_times_as_much(name: str) -> None:
    one, five = size(), size(replace(BILLION, num_rows=5_000_000_000))
    assert getattr(five, name) == pytest.approx(5 * getattr(one, name), rel=1e-6)


def test_a_small_corpus_cannot_use_all_machines() -> None:
    """A hundred shards keep a hundred workers busy, so more cores take as long."""
    small = Workload(num_rows=1_000_000)
    many, more = Machines(num_cores=512), Machines(num_cores=4096)
    assert size(small, many).stage_hours == size(small, more).stage_hours
    assert size(BILLION, more).stage_hours["measure"] == pytest.approx(
        size(BILLION, many).stage_hours["measure"] / 8
    )


def test_more_machines_never_take_longer_and_hold_no_more_hours() -> None:
    found = [size(BILLION, Machines(num_cores=cores)) for cores in (64, 256, 512, 2048)]
    hours = [item.hours for item in found]
    assert hours == sorted(hours, reverse=True)
    gpus = [size(BILLION, Machines(num_gpus=gpus)) for gpus in (1, 8, 64)]
    assert [item.stage_hours["encode"] for item in gpus] == sorted(
        (item.stage_hours["encode"] for item in gpus), reverse=True
    )
    assert len({item.gpu_hours for item in gpus}) == 1


def test_what_one_worker_does_is_not_hastened_by_machines() -> None:
    few, many = Machines(num_cores=16, num_gpus=1), Machines(num_cores=4096, num_gpus=64)
    for stage in ("relate", "select"):
        assert size(BILLION, few).stage_hours[stage] == size(BILLION, many).stage_hours[stage]


def test_the_slowest_of_web_core_and_line_sets_the_pace_of_fetching() -> None:
    fast_line = Machines(gbit_per_second=1e6)
    slow_web = size(replace(BILLION, request_seconds=4.0), fast_line).stage_hours["fetch"]
    fast_web = size(replace(BILLION, request_seconds=0.001), fast_line).stage_hours["fetch"]
    assert slow_web == pytest.approx(4 * size(BILLION, fast_line).stage_hours["fetch"])
    assert fast_web == pytest.approx(1e9 * 0.00276 / 512 / 3600)  # the cores' own pace
    line = size(BILLION, Machines(gbit_per_second=1.0)).stage_hours["fetch"]
    assert line == pytest.approx(BILLION.num_received * 150e3 * 8 / 1e9 / 3600)


def test_prices_are_applied_to_what_is_held_and_stored() -> None:
    found = size_of(
        BILLION,
        Machines(),
        Prices(
            per_cpu_hour=1.0,
            per_gpu_hour=10.0,
            per_tb_month=2.0,
            per_million_writes=3.0,
            per_million_reads=4.0,
        ),
    )
    assert found.compute_cost == pytest.approx(found.cpu_hours + 10 * found.gpu_hours)
    assert found.month_cost == pytest.approx(2 * found.stored_bytes / 1e12)
    assert found.request_cost == pytest.approx((3 * found.num_objects + 4 * found.num_reads) / 1e6)


def test_without_clip_measuring_takes_a_thirtieth() -> None:
    with_clip = size().stage_hours["measure"]
    without = size(replace(BILLION, has_clip=False)).stage_hours["measure"]
    assert with_clip / without == pytest.approx((2 / 1014 + 0.0622) / (2 / 1014))
