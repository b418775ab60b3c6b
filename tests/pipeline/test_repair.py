"""The token shard that is taken over from is the one that saves most, and is sound."""

from dataclasses import replace

import pytest

from pipeline.lineage import want_tokens
from pipeline.repair import Repair, best_basis, repair_class
from schemas.catalog import ShardRow

SHARD = ShardRow(
    kind="pairs",
    source="web",
    shard="000000",
    ordinal=0,
    path="",
    fingerprint="",
    records="all",
    sha256="bytes",
    bytes=0,
    num_rows=100,
    num_records=100,
)
SELECTED = replace(SHARD, kind="selected", split="train", records="wanted", num_records=80)
WANTED = want_tokens(SELECTED, image_tokenizer="new", text_tokenizer="new")


def made(
    image: str = "new",
    text: str = "new",
    *,
    records: str = "others",
    num_records: int = 80,
    inputs: str = "bytes",
) -> ShardRow:
    wanted = want_tokens(
        replace(SELECTED, records=records), image_tokenizer=image, text_tokenizer=text
    )
    return wanted.row(
        path=f"{image}{text}{records}{num_records}",
        records=records,
        sha256="",
        bytes=0,
        num_rows=num_records,
        num_records=num_records,
        inputs=inputs,
    )


def best(*rows: ShardRow) -> ShardRow | None:
    return best_basis(rows, WANTED, SHARD, num_records=80)


def test_nothing_is_taken_over_from_other_bytes_or_other_tokenizers() -> None:
    assert best() is None
    assert best(made(inputs="other bytes"), made("old", "old")) is None


@pytest.mark.parametrize(
    ("better", "worse"),
    [
        (made(text="old", records="wanted"), made("old", records="wanted")),  # images are dear
        (made(num_records=80), made(num_records=10)),  # ten can join to 80, not the other way
        (made(records="wanted", text="old"), made("old", "new", records="wanted")),
        (made(records="wanted", text="old"), made(num_records=70)),
        (made(records="others"), made(records="others", text="old")),
        (made("old"), made("old", "old")),
    ],
)
def test_the_dearest_work_is_saved_first(better: ShardRow, worse: ShardRow) -> None:
    assert best(better, worse) == best(worse, better) == better


def test_of_equal_ones_the_newest_counts() -> None:
    newer = replace(made(), path="newer")
    assert best(newer, made()) == newer


def test_documents_look_at_their_text() -> None:
    documents = replace(SHARD, kind="intake")
    wanted = want_tokens(SELECTED, image_tokenizer="", text_tokenizer="new")
    rows = [made("", "old", num_records=80), made("", "new", num_records=5)]
    assert best_basis(rows, wanted, documents, num_records=80) == rows[1]
    assert repair_class(rows[0], wanted, documents, num_joining=3) is Repair.RETEXT
    assert repair_class(rows[1], wanted, documents, num_joining=3) is Repair.EXTEND
