"""However often driver and workers are killed, the ledger balances with the server's books."""

from pathlib import Path

import pytest

from schemas.ledger import State
from tests.chaos import ingest
from tests.chaos.flaky import behaviour

NUM_ROWS = 400
NUM_KILLS = 3


@pytest.mark.ray
@pytest.mark.slow
def test_killed_ingest_balances(tmp_path: Path) -> None:
    found = ingest.run(tmp_path, num_kills=NUM_KILLS, num_rows=NUM_ROWS, seed=1)
    assert found.num_driver_kills + found.num_worker_kills == NUM_KILLS
    assert found.num_driver_kills
    assert sum(found.states.values()) == NUM_ROWS


def test_the_server_plays_every_part() -> None:
    states = {behaviour(number)[1] for number in range(NUM_ROWS)}
    assert states == {
        State.OK,
        State.HTTP_4XX,
        State.HTTP_5XX,
        State.NOT_IMAGE,
        State.UNDECODABLE,
        State.CONNECTION_ERROR,
        State.OPTED_OUT,
        State.TIMEOUT,
    }
