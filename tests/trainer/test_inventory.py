"""What a catalog says, and every version that cannot be trained on."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from schemas.catalog import ShardRow
from schemas.errors import CatalogError, DeclarationError, FingerprintError, StreamError
from schemas.fingerprint import canonical_json, digest
from schemas.storage import Store
from tests.trainer.corpora import (
    SHAPES,
    ShardSpec,
    Tokenizers,
    draw_corpus,
    draw_source,
    publish_rows,
    write_corpus,
    write_shard,
)
from trainer.inventory import read_inventory


def read(reference: str, **more: Any) -> Any:
    return read_inventory(reference, **{"version": None, "split": "train", **more})


def rows_of(root: Path, shards: list[ShardSpec]) -> list[ShardRow]:
    return [write_shard(Store(root), spec, Tokenizers(), rows_per_batch=4) for spec in shards]


def with_parts(row: ShardRow, **parts: str) -> ShardRow:
    return replace(row, parts=canonical_json({**json.loads(row.parts), **parts}).decode())


def test_sources_and_shards_are_sorted_by_name(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    shards = [
        *draw_source(rng, "b", [3] * 11, image_share=1.0),
        *draw_source(rng, "a", [2, 4], image_share=0.0),
    ]
    found = read(write_corpus(tmp_path, shards[::-1]))
    assert [source.name for source in found.sources] == ["a", "b"]
    assert found.sources[1].shards.to_pylist() == [f"{number:06d}" for number in range(11)]
    assert found.sources[0].num_records.tolist() == [2, 4]
    assert found.header_shard == (1, 0)  # the first with images


def test_splits_are_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    url = write_corpus(
        tmp_path,
        [
            *draw_source(rng, "a", [5, 6], image_share=1.0),
            *draw_source(rng, "a", [2], image_share=1.0, split="validation"),
        ],
    )
    assert read(url).sources[0].num_records.tolist() == [5, 6]
    for reference, split in ((f"{url}@v1:validation", "train"), (f"{url}@v1", "validation")):
        found = read(reference, split=split)
        assert (found.split, found.sources[0].num_records.tolist()) == ("validation", [2])
    with pytest.raises(StreamError, match=r"no records in split 'test'; its splits are train, val"):
        read(url, split="test")
    with pytest.raises(StreamError, match="name one"):
        read(f"{url}@v1:validation", split="test")


def test_versions_are_pinned(tmp_path: Path) -> None:
    shards = draw_corpus(SHAPES["pairs"], 1)
    url = write_corpus(tmp_path, shards)
    write_corpus(tmp_path, shards[:2])
    assert read(url).number == 2
    assert read(f"{url}@v1").number == read(url, version=1).number == 1
    with pytest.raises(StreamError, match="name one"):
        read(f"{url}@v1", version=2)
    with pytest.raises(CatalogError, match="no version v7"):
        read(url, version=7)
    with pytest.raises(DeclarationError, match="no version"):
        read(f"{url}@latest")


def test_a_corpus_without_a_version_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="pixelese apply"):
        read(str(tmp_path))


def test_an_incomplete_version_is_refused(tmp_path: Path) -> None:
    url = write_corpus(tmp_path, draw_corpus(SHAPES["pairs"], 1), complete=False)
    with pytest.raises(CatalogError, match=r"@v1 is not complete.*pixelese apply"):
        read(url)


def test_a_split_without_records_is_refused(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    url = write_corpus(tmp_path, draw_source(rng, "a", [0, 0], image_share=1.0))
    with pytest.raises(StreamError, match="no records in split 'train'"):
        read(url)


@pytest.mark.parametrize("kind", ["image", "text"])
def test_mixed_tokenizers_are_refused(tmp_path: Path, kind: str) -> None:
    rows = rows_of(tmp_path, draw_corpus(SHAPES["pairs"], 1))
    changed = with_parts(rows[1], **{f"{kind}_tokenizer": digest("another")})
    publish_rows(tmp_path, [rows[0], changed, *rows[2:]])
    with pytest.raises(
        FingerprintError, match=f"mixes 2 {kind} tokenizers .*{digest('another')[:16]}"
    ):
        read(str(tmp_path))


def test_texts_beside_pairs_are_no_mixture_of_tokenizers(tmp_path: Path) -> None:
    found = read(write_corpus(tmp_path, draw_corpus(SHAPES["pairs and texts"], 1)))
    assert found.image_tokenizer == Tokenizers().image


def test_a_catalog_without_tokenizers_is_refused(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, draw_corpus(SHAPES["pairs"], 1))
    publish_rows(tmp_path, [replace(row, parts="{}") for row in rows])
    with pytest.raises(CatalogError, match="text_tokenizer"):
        read(str(tmp_path))


def test_content_is_what_the_shards_hold(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, draw_corpus(SHAPES["pairs"], 1))
    publish_rows(tmp_path, rows)
    first = read(str(tmp_path))
    publish_rows(tmp_path, [replace(row, made_in_seconds=9.0) for row in rows[::-1]])
    assert read(str(tmp_path)).content == first.content
    publish_rows(tmp_path, [replace(rows[0], sha256=digest("other")), *rows[1:]])
    assert read(str(tmp_path)).content != first.content
