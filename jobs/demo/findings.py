"""What the demo planted, against what the corpus says it found."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from jobs.demo.scene_list import BROKEN, Fault
from jobs.report.data import Finding
from pipeline.lineage import TRAIN
from pipeline.shard_table import read_table
from pipeline.token_shard import read_token_shard
from schemas.catalog import Catalog, Version
from schemas.layout import ledger_path
from schemas.ledger import State
from schemas.storage import Store


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of one planted row."""

    fault: Fault
    expected_state: str
    state: str
    dropped_by: str | None
    """The step of the selection that dropped it, for a pair."""
    num_objects: int
    num_words: int | None
    """Words of its image sentence, where it was encoded."""


def read_verdicts(url: str, truth: Path) -> list[Verdict]:
    """The fate of every planted row in the newest version, by its URL."""
    store = Store(url)
    version = Catalog(store).read()
    dropped = dict(_dropped(store, version))
    words = dict(_words(store, version))
    planted = {row["url"]: row for row in pq.read_table(truth).to_pylist()}
    return [
        Verdict(
            fault=Fault(planted[row["url"]]["fault"]),
            expected_state=planted[row["url"]]["expected_state"],
            state=row["state"],
            dropped_by=dropped.get(row["key"]),
            num_objects=planted[row["url"]]["num_objects"],
            num_words=words.get(row["key"]),
        )
        for row in _ledger(store, version)
    ]


def planted_findings(verdicts: list[Verdict], *, num_rows: int) -> list[Finding]:
    """Faults found of faults planted, one line a kind."""
    swapped = [item for item in verdicts if item.fault is Fault.SWAPPED]
    good = [item for item in verdicts if item.fault is Fault.GOOD]
    copies = [item for item in verdicts if item.fault is Fault.DUPLICATE]
    broken = [item for item in verdicts if item.fault in BROKEN]
    wrong = sum(item.dropped_by is not None for item in swapped)
    lost = sum(item.dropped_by == "matches_caption" for item in good)
    # Of a picture and its copy the first in ingest order stays, whichever of the two that is.
    unique = sum(item.dropped_by == "unique" for item in verdicts)
    accounted = sum(item.state == item.expected_state for item in broken)
    return [
        Finding(
            what="input rows accounted for",
            found=f"{len(verdicts):,}",
            expected=f"{num_rows:,}",
            good=len(verdicts) == num_rows,
        ),
        Finding(
            what="wrong captions dropped",
            found=f"{wrong}",
            expected=f"{len(swapped)}",
            good=wrong >= 0.9 * len(swapped),
        ),
        Finding(
            what="right captions dropped with them",
            found=f"{lost}",
            expected=f"0 of {len(good):,}",
            good=lost <= 0.05 * len(good),
        ),
        Finding(
            what="duplicate pictures dropped",
            found=f"{unique}",
            expected=f"{len(copies)}",
            good=unique >= 0.9 * len(copies),
            note="one whose original was dropped already may stay",
        ),
        Finding(
            what="broken replies in the right state",
            found=f"{accounted}",
            expected=f"{len(broken)}",
            good=accounted == len(broken),
        ),
    ]


def length_findings(verdicts: list[Verdict]) -> list[Finding]:
    """How the length of an image sentence follows what is in the picture."""
    encoded = [item for item in verdicts if item.num_words is not None]
    objects = np.array([item.num_objects for item in encoded])
    words = np.array([item.num_words for item in encoded], float)
    fewest, most = int(objects.min()), int(objects.max())
    few, many = words[objects == fewest].mean(), words[objects == most].mean()
    return [
        Finding(
            what=f"mean words of scenes with {fewest} and with {most} objects",
            found=f"{few:.1f} and {many:.1f}",
            expected="more objects, more words",
            good=bool(many > few),
        ),
        Finding(
            what="rank correlation of words with objects",
            found=f"{rank_correlation(objects, words):.2f}",
            expected="above 0",
            good=rank_correlation(objects, words) > 0,
        ),
    ]


def rank_correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Spearman's rho, ties at their mean rank."""
    return float(np.corrcoef(_ranks(first), _ranks(second))[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    ends = np.cumsum(counts)
    return np.asarray((ends - (counts - 1) / 2)[group])


def _ledger(store: Store, version: Version) -> Iterator[dict[str, str]]:
    for row in version.rows("pairs"):
        table = pq.read_table(store.local(ledger_path(row.path)), columns=["url", "key", "state"])
        for item in table.to_pylist():
            # A row that repeats another one has its key, but is no pair of its own.
            is_pair = item["state"] == State.OK
            yield item if is_pair else {**item, "key": ""}


def _dropped(store: Store, version: Version) -> Iterator[tuple[str, str]]:
    for row in version.rows("selected", split=TRAIN):
        for item in read_table(store, row, columns=["key", "dropped_by"]).to_pylist():
            if item["dropped_by"] is not None:
                yield item["key"], item["dropped_by"]


def _words(store: Store, version: Version) -> Iterator[tuple[str, int]]:
    for row in version.rows("tokens"):
        shard = read_token_shard(store, row)
        yield from zip(shard.keys, (int(n) for n in shard.image.lengths), strict=True)
