"""A trial for the terminal: lengths, codebook, agreement, and what the whole would take."""

from jobs.changes_table import print_changes, print_facts, print_histogram
from jobs.diff_facts import agreement_facts, length_histogram
from jobs.tables import console
from jobs.trial_facts import (
    sampled_changes,
    told_sample,
    told_tokenizers,
    whole_facts,
    why_codes_may_differ,
)
from pipeline.effort import Prices
from pipeline.trial import Trial


def print_trial(trial: Trial, prices: Prices, *, workers: int | None = None) -> None:
    """Prints it; with `workers`, also how long so many take for the whole."""
    for line in told_tokenizers(trial):
        console.print(line)
    console.print(f"sampled {told_sample(trial)}; nothing was published")
    sides = trial.before.name, trial.after.name
    print_changes(sides, sampled_changes(trial))
    histogram = length_histogram(trial)
    if histogram is not None:
        print_histogram(sides, histogram)
    console.print(f"\nagreement of {trial.agreement.num_records:,} sampled records")
    print_facts(agreement_facts(trial))
    note = why_codes_may_differ(trial)
    if note:
        console.print(f"({note})")
    console.print("\nall of it, as an apply would make it")
    print_facts(whole_facts(trial, prices, workers))
