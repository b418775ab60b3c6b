"""A trial's numbers as people read them, for the terminal and for the page alike."""

from collections.abc import Iterator

from jobs.diff_facts import TEXT_LENGTH, Change, codebook_changes, length_changes, relative
from jobs.tables import duration, money, size
from pipeline.effort import Prices
from pipeline.trial import Trial


def told_tokenizers(trial: Trial) -> list[str]:
    """`tokenizer d02a854c -> 76ce076b`, for each that changes."""
    found = trial.tokenizers
    sides = (
        ("tokenizer", found.image_changes, found.image_before, found.image_after),
        ("text tokenizer", found.text_changes, found.text_before, found.text_after),
    )
    return [
        f"{name} {', '.join(item[:8] for item in before)} -> {after[:8]}"
        for name, changes, before, after in sides
        if changes
    ]


def told_sample(trial: Trial) -> str:
    """What was sampled."""
    sample = trial.after.sample
    return (
        f"{trial.num_records:,} of {trial.whole.num_records:,} records, from {sample.num_shards:,} "
        f"of {sample.num_all_shards:,} token shards of v{trial.version}"
    )


def sampled_changes(trial: Trial) -> list[Change]:
    """Lengths and codebook usage of what is encoded anew."""
    values = trial.before.words_per_record, trial.after.words_per_record
    before, after = (f"{value:,.1f}" for value in values)
    changes = [Change("words a record, mean", before, after, relative(*values))]
    for item in (*length_changes(trial), *codebook_changes(trial)):
        is_text = item.what.startswith(TEXT_LENGTH)
        if trial.tokenizers.text_changes if is_text else trial.tokenizers.image_changes:
            changes.append(item)
    return changes


def why_codes_may_differ(trial: Trial) -> str:
    """What a share of equal codes does not say; "" where nothing is to be said."""
    if trial.agreement.equal_codes is None or not trial.tokenizers.image_changes:
        return ""
    return "a codebook that was trained apart has its own numbering: its codes differ by themselves"


def whole_facts(
    trial: Trial, prices: Prices, workers: int | None = None
) -> Iterator[tuple[str, str]]:
    """What all of it would take and give: (what, told)."""
    whole = trial.whole
    yield "records", f"{whole.num_records:,} in {whole.num_shards:,} token shards"
    yield "work", _work(trial, workers)
    cost = prices.cost(whole.effort)
    if cost is not None:
        lacking = "; GPU hours have no price" if prices.lack_gpu(whole.effort) else ""
        yield "cost", f"{money(cost)}{lacking}"
    for what, before, after in (
        ("image words", whole.image_words_before, whole.image_words_after),
        ("text ids", whole.text_ids_before, whole.text_ids_after),
    ):
        if before or after:
            yield what, f"{before:,} -> {after:,} ({relative(before, after)})"
    sizes = whole.bytes_before, whole.bytes_after
    yield "token shards", f"{size(sizes[0])} -> {size(sizes[1])} ({relative(*sizes)})"


def _work(trial: Trial, workers: int | None) -> str:
    whole = trial.whole
    assert whole.effort.worker_seconds is not None
    hours = whole.effort.worker_seconds / 3600
    told = f"{hours:,.2f} worker hours" if hours >= 0.1 else duration(hours * 3600)
    told += " on GPUs" if whole.effort.gpu_seconds else ""
    if workers is not None:
        told += f", about {duration(whole.seconds(workers))} with {workers} workers"
    rate = trial.seconds / trial.num_records
    return f"{told}, at {1000 * rate:,.1f} ms a record in this sample"
