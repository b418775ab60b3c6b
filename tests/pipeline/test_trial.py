"""A trial says of the whole what an apply then finds, and refuses what it could not show."""

import json
from pathlib import Path

import pytest

from pipeline.agreement import compare_tokens, sample_tokens
from pipeline.effort import NO_PRICES, Prices
from pipeline.sample import encode_sample
from pipeline.trial import Trial, conclude, plan_trial
from schemas.catalog import Catalog
from schemas.errors import CatalogError, DeclarationError
from tests.pipeline.living import Living, image_tokenizer, live, text_tokenizer

BOTH = [{"name": "drawn", "urls": "list.csv"}, {"name": "books", "text": "books.jsonl"}]


@pytest.fixture
def living(tmp_path: Path) -> Living:
    made = live(tmp_path, sources=BOTH)
    made.add_pairs(range(4))
    made.add_documents(9)
    made.apply()
    return made


def run(living: Living, share: float) -> Trial:
    """What `apply --sample` does, in this process."""
    corpus = living.open()
    plan = plan_trial(corpus, share=share)
    assert corpus.tokenizer_url is not None
    assert corpus.text_tokenizer_url is not None
    changes = plan.tokenizers
    image = image_tokenizer(corpus.tokenizer_url) if changes.image_changes else None
    text = text_tokenizer(corpus.text_tokenizer_url) if changes.text_changes else None
    parts = [
        encode_sample(corpus.store, task, image_tokenizer=image, text_tokenizer=text)
        for task in plan.tasks
    ]
    return conclude(plan, parts)


def test_a_sample_of_all_says_what_the_apply_then_does(living: Living) -> None:
    living.declare(tokenizer="30", text_tokenizer="few")
    trial = run(living, 1.0)
    before = living.tokens()
    living.apply()
    after = living.tokens()
    catalog = Catalog(living.store)
    old, new = (catalog.read(number).select("tokens") for number in (3, 4))
    expected = compare_tokens(living.store, old, new)
    for name in (
        "num_records",
        "same_text",
        "num_images",
        "same_sentence",
        "kept_in_common",
        "equal_codes",
    ):
        assert getattr(trial.agreement, name) == pytest.approx(getattr(expected, name))
    assert [item.key for item in trial.agreement.changed] == [item.key for item in expected.changed]
    assert trial.after.sample.perplexity == sample_tokens(living.store, new).perplexity
    whole = trial.whole
    assert whole.num_records == sum(row.num_records for row in after)
    assert whole.image_words_after == sum(row.num_codes + row.num_places for row in after)
    assert whole.text_ids_after == sum(row.num_text_ids for row in after)
    assert whole.bytes_before == sum(row.bytes for row in before)
    assert whole.bytes_after == pytest.approx(sum(row.bytes for row in after), rel=0.1)


def test_only_what_other_tokenizers_make_otherwise_is_sampled(living: Living) -> None:
    living.declare(tokenizer="30")
    trial = run(living, 0.01)
    assert trial.whole.num_records == sum(row.num_images for row in living.tokens())
    assert not trial.tokenizers.text_changes
    assert trial.whole.text_ids_after == trial.whole.text_ids_before
    assert trial.num_records == trial.whole.num_records  # fewer than the least that says anything


def test_documents_count_by_their_own_rate(living: Living) -> None:
    living.declare(text_tokenizer="few")
    trial = run(living, 1.0)
    assert trial.whole.num_records == sum(row.num_records for row in living.tokens())
    assert trial.numeric == ""
    assert trial.whole.effort.gpu_seconds == 0.0
    assert not trial.tokenizers.image_changes
    assert trial.whole.image_words_after == trial.whole.image_words_before


def test_machines_are_told_with_costs(living: Living) -> None:
    living.declare(tokenizer="30")
    trial = run(living, 1.0)
    told = json.loads(json.dumps(trial.as_json(Prices(per_cpu_hour=3600.0), workers=2)))
    assert told["whole"]["cost"] == pytest.approx(told["whole"]["worker_seconds"])
    assert told["whole"]["seconds"] == pytest.approx(told["whole"]["worker_seconds"] / 2)
    assert told["whole"]["worker_seconds"] == pytest.approx(told["seconds"])
    assert told["before"]["codebook_size"] == told["after"]["codebook_size"] == 16
    assert told["agreement"]["not_asked"] == ""
    assert trial.as_json(NO_PRICES)["whole"]["cost"] is None


def test_what_would_show_nothing_is_refused(living: Living, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match=r"v3 was encoded by the tokenizers that corpus\.yaml"):
        run(living, 0.1)
    living.declare(tokenizer=None)
    with pytest.raises(DeclarationError, match="names no tokenizer to try"):
        run(living, 0.1)
    empty = live(tmp_path / "empty")
    with pytest.raises(CatalogError, match="no published version yet: run `pixelese apply`"):
        run(empty, 0.1)
    empty.add_pairs([0])
    with pytest.raises(CatalogError, match="v1 has no tokens"):
        run(empty, 0.1)
