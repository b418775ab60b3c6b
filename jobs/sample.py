"""`apply --sample`: a few records in the words of changed tokenizers, beside the published ones.

Up to 512 records are encoded in this process: starting Ray, and a tokenizer in each worker, takes
longer. More, or a cluster that was named, go through the pool of an apply, which gives workers the
CPUs and GPUs that `encode` has. Nothing is written to the corpus, and no lease is taken.
"""

import io
from collections.abc import Callable
from dataclasses import dataclass

from jobs.budget import NO_BUDGET, Spending
from jobs.cluster import named_address
from jobs.executor import Executor
from pipeline.corpus import TokenizerReaders, open_corpus
from pipeline.sample import SampledTokens, SampleTask, encode_sample
from pipeline.trial import Trial, TrialPlan, conclude, plan_trial
from schemas.errors import FingerprintError
from schemas.protocols import ImageTokenizer, TextTokenizer
from schemas.storage import Store

MAX_RECORDS_HERE = 512
"""Records that are encoded without a cluster: some seconds on a GPU, two minutes of a large
encoder on a CPU."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SampleStage:
    """Published records to new words. A tokenizer that did not change is not loaded."""

    store: Store
    image_url: str | None
    image_tokenizer: str
    """The fingerprint that was planned with."""
    text_url: str | None
    text_tokenizer: str

    def open(self) -> Callable[[SampleTask], list[SampledTokens]]:
        image, text = self._open_image(), self._open_text()

        def work(task: SampleTask) -> list[SampledTokens]:
            return [encode_sample(self.store, task, image_tokenizer=image, text_tokenizer=text)]

        return work

    def _open_image(self) -> ImageTokenizer | None:
        if self.image_url is None:
            return None
        import torch

        from tokenizer.tokenize import DynamicTokenizer

        torch.set_num_threads(1)
        device = "cuda" if torch.cuda.is_available() else "cpu"
        found = DynamicTokenizer.load(self.image_url, device=device)
        _check(found.fingerprint, self.image_tokenizer, self.image_url)
        if device != "cpu":
            found.encode([_blank()])  # a GPU's first batch takes seconds, which no other takes
        return found

    def _open_text(self) -> TextTokenizer | None:
        if self.text_url is None:
            return None
        from tokenizer.text import JsonTextTokenizer

        found = JsonTextTokenizer.load(self.text_url)
        _check(found.fingerprint, self.text_tokenizer, self.text_url)
        return found


def sample_corpus(
    url: str,
    *,
    share: float,
    readers: TokenizerReaders,
    address: str | None = None,
    num_workers: int | None = None,
) -> Trial:
    """Encodes a share of the published records with the tokenizers that corpus.yaml names now.

    Args:
        url: the corpus.
        share: of its records, 0 < share <= 1; 64 are taken anyway.
        readers: how tokenizers' fingerprints are read.
        address: a running Ray cluster; None for a local one, where one is needed.
        num_workers: workers; None for one a CPU.

    Raises:
        CatalogError: there is nothing to compare with, or nothing that would differ.
        PixeleseError: see schemas/errors.py.
    """
    corpus = open_corpus(url, readers=readers, check_files=False)
    plan = plan_trial(corpus, share=share)
    changes = plan.tokenizers
    stage = SampleStage(
        store=corpus.store,
        image_url=corpus.tokenizer_url if changes.image_changes else None,
        image_tokenizer=changes.image_after,
        text_url=corpus.text_tokenizer_url if changes.text_changes else None,
        text_tokenizer=changes.text_after,
    )
    executor = Executor(
        corpus.state,
        spending=Spending(NO_BUDGET),
        address=address,
        num_workers=num_workers,
        resources=corpus.declaration.resources,
        stages=("encode",),
    )
    with executor:
        parts = executor.run(
            "encode",
            stage,
            [(f"records of {_label(task)}", task) for task in plan.tasks],
            "groups",
            on_gpu=True,
            here=_fits_here(plan, address),
        )
    return conclude(plan, parts)


def _fits_here(plan: TrialPlan, address: str | None) -> bool:
    return named_address(address) is None and plan.num_records <= MAX_RECORDS_HERE


def _label(task: SampleTask) -> str:
    first = task.shards[0].tokens
    others = len(task.shards) - 1
    return f"{first.source}/{first.shard}" + (f" and {others} more shards" if others else "")


def _check(found: str, planned: str, url: str) -> None:
    if found != planned:
        raise FingerprintError(
            f"{url} is tokenizer {found[:16]}, {planned[:16]} was planned. It changed under way: "
            "run the same command again"
        )


def _blank() -> bytes:
    """A JPEG of one colour."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.new("RGB", (64, 64)).save(buffer, "JPEG")
    return buffer.getvalue()
