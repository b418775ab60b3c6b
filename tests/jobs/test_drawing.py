"""Pages draw what stored codes say, and where nothing can, tell why in place of failing."""

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from jobs.corpus_report import corpus_report
from jobs.report.drawing import open_drawer, open_drawing
from jobs.report.page import render_report
from jobs.report.stored import sentences_of
from pipeline.token_shard import TokenShard
from schemas.catalog import Catalog
from schemas.sentence import write_sentences
from schemas.storage import Store
from schemas.tokens import TokenShardHeader
from tests.jobs.conftest import SmallCorpus, Tokenizers
from tokenizer.artifact import read_fingerprint


@pytest.mark.ray
def test_a_report_draws_what_became_words(undisturbed: SmallCorpus) -> None:
    data = corpus_report(str(undisturbed.root))
    assert data.gallery
    assert data.why_not_drawn == ""
    for picture in data.gallery:
        assert picture.drawn is not None
        assert picture.drawn.shape == (32, 32, 3)
    page = render_report(replace(data, edges=(), duplicates=None))
    assert page.count("data:image/jpeg;base64,") == 3 * len(data.gallery)
    assert "drawn from the stored codes" in page
    assert "Nothing is drawn" not in page


@pytest.mark.ray
def test_a_report_without_its_tokenizer_says_so(undisturbed: SmallCorpus, tmp_path: Path) -> None:
    """The version's own declaration counts, and what lies there now may be another."""
    root = tmp_path / "copy"
    shutil.copytree(undisturbed.root, root)
    store, declared = Store(root), Catalog(Store(root)).read().declaration
    row = next(row for row in Catalog(store).read().rows("tokens") if row.num_images)
    first = declared.split("tokenizer: ")[1].splitlines()[0]
    fingerprint = read_fingerprint(first)
    assert open_drawing(store, declared, fingerprint=fingerprint).drawer is not None
    gone = open_drawing(store, declared.replace(first, "gone"), fingerprint=fingerprint)
    assert gone.drawer is None
    assert f"{root}/gone: no such tokenizer folder" in gone.why_not
    data = replace(corpus_report(str(root)), why_not_drawn=gone.why_not)
    bare = tuple(replace(picture, drawn=None) for picture in data.gallery)
    page = render_report(replace(data, gallery=bare, edges=(), duplicates=None))
    assert "Nothing is drawn from codes" in page
    assert page.count("data:image/jpeg;base64,") == 2 * len(bare)
    assert row.num_images


def test_only_the_tokenizer_that_wrote_codes_draws_them(tokenizers: Tokenizers) -> None:
    first, second = (read_fingerprint(str(path)) for path in (tokenizers.first, tokenizers.second))
    assert open_drawer(str(tokenizers.first), fingerprint=first).drawer is not None
    other = open_drawer(str(tokenizers.first), fingerprint=second)
    assert "only that one can draw them" in other.why_not
    blind = open_drawer(str(tokenizers.second), fingerprint=second)
    assert "has no pixel decoder" in blind.why_not
    for drawing in (other, blind):
        assert drawing.drawer is None
        assert drawing.draw([]) == []


def test_sentences_are_read_back_by_key() -> None:
    masks = np.zeros((3, 16), bool)
    masks[0, [2, 5]], masks[2, 15] = True, True
    words = write_sentences(masks, np.array([7, 0, 9]), codebook_size=10)
    header = TokenShardHeader(
        fingerprint="",
        image_tokenizer="abc",
        text_tokenizer="",
        codebook_size=10,
        grid=4,
        positions="2d",
        num_text_ids=5,
    )
    shard = TokenShard(header, ["a", "b", "d"], words, words)
    found = sentences_of(shard, ["d", "b", "a", "c", "zz"])  # b has no image
    assert sorted(found) == ["a", "d"]
    assert found["a"].codes.tolist() == [7, 0]
    assert np.flatnonzero(found["a"].keep_mask).tolist() == [2, 5]
    assert (found["d"].codes.tolist(), found["d"].grid, found["d"].tokenizer) == ([9], 4, "abc")
    assert sentences_of(shard, ["b", "c"]) == {}
