"""A corpus as it stands: what is declared, what is known, and what decides its outputs.

Opening one reads corpus.yaml, the catalog and the tokenizers' recorded digests; no model is loaded.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from pipeline.evaluation_sets import (
    NOT_READ,
    EvaluationPlan,
    find_hash_lists,
    list_digest,
    plan_evaluation_sets,
)
from pipeline.rates import Rates, known_rates
from pipeline.state import CorpusState
from schemas.declaration import Declaration, load_declaration, resolve
from schemas.signals import SignalSchema
from schemas.storage import Store


class DeclaredSignal(Protocol):
    """A signal group with its settings, as `pipeline.signals` opens it."""

    @property
    def schema(self) -> SignalSchema: ...

    def settings(self) -> dict[str, Any]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class TokenizerReaders:
    """How tokenizers' fingerprints are read: handed in, as the packages do not know each other."""

    image: Callable[[str], str]
    text: Callable[[str], str]


@dataclass(frozen=True)
class Corpus:
    """One corpus, opened for planning or applying."""

    store: Store
    declaration: Declaration
    text: str
    """The corpus.yaml as it is written."""
    state: CorpusState
    signals: Sequence[DeclaredSignal]
    readers: TokenizerReaders
    _settings: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def tokenizer_url(self) -> str | None:
        location = self.declaration.tokenizer
        return None if location is None else resolve(location, self.store)

    @property
    def text_tokenizer_url(self) -> str | None:
        location = self.declaration.text_tokenizer
        return None if location is None else resolve(location, self.store)

    @property
    def can_encode(self) -> bool:
        """Whether the declaration goes as far as tokens."""
        has_image = self.tokenizer_url is not None or not self.declaration.has_images
        return has_image and self.text_tokenizer_url is not None

    @cached_property
    def image_tokenizer(self) -> str:
        """The visual tokenizer's fingerprint, "" where none is declared."""
        return "" if self.tokenizer_url is None else self.readers.image(self.tokenizer_url)

    @cached_property
    def text_tokenizer(self) -> str:
        """The text tokenizer's fingerprint, "" where none is declared."""
        url = self.text_tokenizer_url
        return "" if url is None else self.readers.text(url)

    @cached_property
    def evaluation_sets(self) -> list[EvaluationPlan]:
        """The evaluation sets as their files were when this was first asked.

        Raises:
            SourceError: a set is missing or empty.
        """
        return plan_evaluation_sets(self.declaration, self.store)

    def hash_lists(self) -> dict[str, str]:
        """Evaluation set -> the path of its hashes, of those that have been read by now."""
        return find_hash_lists(self.store, self.evaluation_sets)

    def evaluation_digests(self) -> dict[str, str]:
        """Evaluation set -> a digest of its hashes, or NOT_READ."""
        lists = self.hash_lists()
        return {
            item.name: list_digest(lists[item.name]) if item.name in lists else NOT_READ
            for item in self.evaluation_sets
        }

    def rates(self) -> Rates:
        """What work took so far, by all rows that are known by now and what the version carries."""
        version = self.state.version
        return known_rates(self.state.known(), {} if version is None else version.metadata)

    def signal_settings(self, signal: DeclaredSignal) -> dict[str, Any]:
        """A signal's settings; a model's digest is computed once."""
        name = signal.schema.name
        if name not in self._settings:
            self._settings[name] = signal.settings()
        return self._settings[name]


def open_corpus(url: str, *, readers: TokenizerReaders, check_files: bool | None = None) -> Corpus:
    """Opens a corpus.

    Args:
        url: a folder or bucket prefix.
        readers: how tokenizers' fingerprints are read.
        check_files: count an output only if its file is still there. A listing of 100,000 shards
            takes seconds on a disk and a minute on an object store; None looks on a disk alone.

    Raises:
        DeclarationError: there is no corpus.yaml, or it is wrong (an unknown signal in a rule too).
    """
    from pipeline.select import compile_rules
    from pipeline.signals import open_signals

    store = Store(url)
    declaration, text = load_declaration(store)
    compile_rules(declaration)
    return Corpus(
        store=store,
        declaration=declaration,
        text=text,
        state=CorpusState(
            store, check_files=store.is_local if check_files is None else check_files
        ),
        signals=open_signals(declaration, store),
        readers=readers,
    )
