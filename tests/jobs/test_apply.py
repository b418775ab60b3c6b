"""An apply makes what is missing or stale, and nothing else; a version is all or nothing."""

import json
import shutil
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from jobs.readers import tokenizer_readers
from pipeline.cards import card_paths, make_cards
from pipeline.corpus import open_corpus
from pipeline.forecast import Forecast, forecast
from pipeline.verify import verify_version
from schemas.catalog import Catalog, ShardRow
from schemas.layout import ledger_path
from schemas.storage import Store
from tests.jobs.conftest import (
    NUM_IMAGES,
    SmallCorpus,
    Tokenizers,
    make_corpus,
    write_images,
    write_text_tokenizer,
)

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def look(corpus: SmallCorpus) -> Forecast:
    return forecast(open_corpus(str(corpus.root), readers=tokenizer_readers()))


def rows(corpus: SmallCorpus, kind: str, number: int | None = None) -> list[ShardRow]:
    return Catalog(Store(corpus.root)).read(number).rows(kind)


def work_of(found: Forecast) -> dict[str, tuple[int, int]]:
    return {
        stage.name: (stage.num_missing, stage.num_stale) for stage in found.stages if stage.has_work
    }


def test_every_input_row_is_accounted_for(undisturbed: SmallCorpus) -> None:
    """Invariant 1: input rows equal the sum over states, in every ledger and over the corpus."""
    pairs = rows(undisturbed, "pairs")
    for row in pairs:
        ledger = pq.read_table(undisturbed.root / ledger_path(row.path))
        assert sum(row.state_counts.values()) == row.num_rows == ledger.num_rows
        assert row.state_counts.get("ok", 0) == row.num_records
    assert sum(row.num_rows for row in pairs) == NUM_IMAGES
    texts = [row for row in rows(undisturbed, "intake") if row.source == "books"]
    assert sum(sum(row.state_counts.values()) for row in texts) == 12
    assert len(texts) > 1  # the documents were cut into several shards


def test_selection_accounts_for_every_record(undisturbed: SmallCorpus) -> None:
    kept = [row for row in rows(undisturbed, "selected") if row.source == "photos"]
    assert {row.split for row in kept} == {"train", "validation"}
    dropped = sum(row.num_rows for row in kept if row.split == "train") - sum(
        row.num_records for row in kept
    )
    assert dropped == NUM_IMAGES // 10  # the repeated pictures, by `unique`
    tokens = rows(undisturbed, "tokens")
    assert sum(row.num_images for row in tokens) == NUM_IMAGES - dropped
    assert {row.split for row in tokens if row.num_images} == {"train", "validation"}


def test_a_second_apply_does_nothing_quickly(undisturbed: SmallCorpus) -> None:
    before = undisturbed.files("catalog")
    started = time.monotonic()
    done = undisturbed.run("apply", str(undisturbed.root))
    assert time.monotonic() - started < 20
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("nothing to do")
    assert undisturbed.files("catalog") == before


def test_every_version_has_its_card(undisturbed: SmallCorpus, tmp_path: Path) -> None:
    """Also one whose writer was killed before; and what is told of a corpus is published alone."""
    copy = SmallCorpus(tmp_path / "copy")
    shutil.copytree(undisturbed.root, copy.root)
    store = Store(copy.root)
    there = {path: store.read(path) for path in card_paths(1)}
    assert there == make_cards(store, 1)
    assert f"| records | {sum(row.num_records for row in rows(copy, 'tokens'))} |" in (
        there[card_paths(1)[0]].decode()
    )
    for path in there:
        store.delete(path)
    assert copy.apply().version is None
    assert {path: store.read(path) for path in card_paths(1)} == there
    copy.declare(about={"name": "Boxes", "license": "cc0-1.0"})
    report = copy.apply()
    assert (report.version, dict(report.made)) == (2, {})
    assert rows(copy, "tokens", 2) == rows(copy, "tokens", 1)
    assert "license: cc0-1.0" in store.read(card_paths(2)[0]).decode()
    assert verify_version(store)[1].problems == ()


def test_plan_says_all_is_current(undisturbed: SmallCorpus) -> None:
    found = look(undisturbed)
    assert found.is_current
    assert work_of(found) == {}
    assert found.funnel.num_records == NUM_IMAGES + 12
    done = undisturbed.run("plan", str(undisturbed.root), "--check", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["is_current"] is True


@pytest.fixture(scope="module")
def living(
    tmp_path_factory: pytest.TempPathFactory, tokenizers: Tokenizers, ray_cluster: None
) -> SmallCorpus:
    """A corpus that the tests below change one after the other, each from a published state."""
    made = make_corpus(tmp_path_factory.mktemp("living") / "corpus", tokenizers)
    made.apply()
    return made


def test_two_applies_of_one_input_are_byte_identical(
    living: SmallCorpus, undisturbed: SmallCorpus
) -> None:
    """Invariant 3: same fingerprint, same bytes, whoever computed it when."""
    for kind in ("intake", "signals", "relations", "selected", "tokens"):
        assert living.files(kind) == undisturbed.files(kind)
        assert living.files(kind)


def test_a_threshold_reruns_neither_fetch_nor_measure(living: SmallCorpus) -> None:
    """Invariant 2: signals are computed once, a selection is a query."""
    living.declare(select={"has_words": "caption_words >= 3", "few": "caption_characters <= 21"})
    found = look(living)
    assert set(work_of(found)) == {"select", "encode"}
    before = {kind: set(living.files(kind)) for kind in ("pairs", "signals", "relations")}
    report = living.apply()
    assert set(report.made) == {"select", "encode"}
    assert {kind: set(living.files(kind)) for kind in before} == before
    assert look(living).is_current


def test_undoing_an_edit_costs_nothing(living: SmallCorpus, undisturbed: SmallCorpus) -> None:
    living.declare(select={"has_words": "caption_words >= 3", "wide": "width >= 64"})
    assert work_of(look(living)) == {}
    report = living.apply()
    assert report.made == {}
    assert report.version is not None
    for kind in ("selected", "tokens"):
        paths = {row.path for row in rows(living, kind)}
        assert paths == {row.path for row in rows(undisturbed, kind)}


def test_a_new_tokenizer_reruns_only_encode_and_reuses_text(
    living: SmallCorpus, tokenizers: Tokenizers
) -> None:
    old = {row.path: row for row in rows(living, "tokens")}
    living.declare(tokenizer=str(tokenizers.second))
    found = look(living)
    assert set(work_of(found)) == {"encode"}
    (encode,) = [stage for stage in found.stages if stage.name == "encode"]
    assert all(reason.startswith("image_tokenizer") for reason in encode.reasons)
    assert encode.effort.worker_seconds is not None
    assert {item.name for item in encode.classes} == {"keep", "recode"}
    report = living.apply()
    assert set(report.made) == {"encode"}
    new = rows(living, "tokens")
    books = [row for row in new if row.source == "books"]
    assert books
    assert all(row.path in old for row in books)  # text shards have no images: all kept
    photos = [row for row in new if row.source == "photos"]
    assert not {row.path for row in photos} & set(old)


def test_training_on_an_old_version_is_untouched(living: SmallCorpus) -> None:
    """Invariant 4: every file of every version is still there, as it was published."""
    from pipeline.verify import verify_row

    store = Store(living.root)
    catalog = Catalog(store)
    assert len(catalog.numbers()) >= 4
    for number in catalog.numbers():
        for row in catalog.read(number).rows("tokens"):
            verify_row(store, row)


def test_a_grown_source_fetches_only_new_rows(living: SmallCorpus) -> None:
    old_pairs = living.files("pairs")
    old_tokens = {row.path for row in rows(living, "tokens")}
    write_images(living.root / "images", NUM_IMAGES, NUM_IMAGES + 6)
    found = look(living)
    (intake,) = [stage for stage in found.stages if stage.name == "intake"]
    assert intake.records == 6
    living.apply()
    new_pairs = living.files("pairs")
    assert {path: new_pairs[path] for path in old_pairs} == old_pairs
    assert sum(row.num_rows for row in rows(living, "pairs")) == NUM_IMAGES + 6
    assert old_tokens < {row.path for row in rows(living, "tokens")}
    assert look(living).is_current


def test_a_new_text_tokenizer_keeps_the_image_words(living: SmallCorpus) -> None:
    from pipeline.token_shard import read_token_shard

    store = Store(living.root)
    old = {(row.source, row.shard, row.split): row for row in rows(living, "tokens")}
    write_text_tokenizer(living.root / "other.json", extra="more")
    living.declare(text_tokenizer="other.json")
    assert set(work_of(look(living))) == {"encode"}
    living.apply()
    for row in rows(living, "tokens"):
        before = read_token_shard(store, old[row.source, row.shard, row.split])
        after = read_token_shard(store, row)
        assert after.header.text_tokenizer != before.header.text_tokenizer
        assert after.image.values.tolist() == before.image.values.tolist()


def test_a_deleted_output_is_made_again_byte_for_byte(living: SmallCorpus) -> None:
    whole = {kind: living.files(kind) for kind in ("signals", "tokens")}
    for kind in whole:
        (living.root / next(iter(whole[kind]))).unlink()
    found = look(living)
    assert work_of(found) == {"measure": (0, 1), "select": (0, 0), "encode": (0, 1)}
    measure = next(stage for stage in found.stages if stage.name == "measure")
    assert measure.reasons == {"its file is gone": 1}
    report = living.apply()
    assert report.made == {"measure": 1, "encode": 1}
    assert {kind: living.files(kind) for kind in whole} == whole


def test_until_pairs_publishes_what_cannot_be_trained_on(corpus: SmallCorpus) -> None:
    report = corpus.apply(until="pairs")
    assert set(report.made) == {"intake", "fetch"}
    version = Catalog(Store(corpus.root)).read()
    assert not version.complete
    from schemas.errors import PixeleseError
    from trainer.stream import TokenStream

    with pytest.raises(PixeleseError, match="v1"):
        TokenStream.open(str(corpus.root), sequence_length=32, global_batch_size=2)
    corpus.apply()
    assert Catalog(Store(corpus.root)).read().complete


def test_a_source_that_is_taken_out_leaves_the_version(corpus: SmallCorpus) -> None:
    corpus.apply()
    corpus.declare(sources=[{"name": "books", "text": "books.jsonl"}])
    corpus.apply()
    assert {row.source for row in rows(corpus, "tokens")} == {"books"}
    corpus.declare(
        sources=[
            {"name": "photos", "folder": "images"},
            {"name": "books", "text": "books.jsonl"},
        ]
    )
    report = corpus.apply()
    assert "fetch" not in report.made  # what the web gave once is not asked for again
    assert {row.source for row in rows(corpus, "tokens")} == {"photos", "books"}


def test_receipts_are_gone_after_publishing(living: SmallCorpus) -> None:
    assert living.files("runs") == {}


def test_stored_words_are_raw(undisturbed: SmallCorpus) -> None:
    """Invariant 5: no offset of a joint vocabulary is in a shard."""
    from pipeline.token_shard import read_token_shard

    store = Store(Path(undisturbed.root))
    shards = [read_token_shard(store, row) for row in rows(undisturbed, "tokens")]
    images = [shard for shard in shards if len(shard.image.values)]
    assert images
    for shard in images:
        limit = shard.header.num_patches + shard.header.codebook_size
        assert int(shard.image.values.max()) < limit
        assert int(shard.text.values.max()) < shard.header.num_text_ids
