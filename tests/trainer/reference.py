"""The stream by its formulas, slowly: plain Python, lists and one loop after another.

Nothing here comes from the code under test, so that agreement means something.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fractions import Fraction

from tests.trainer.corpora import Record, ShardSpec, Tokenizers, records_by_source

MASK = (1 << 64) - 1
GAMMA = 0x9E3779B97F4A7C15
IGNORED = -100


def mix(x: int) -> int:
    """The splitmix64 finaliser."""
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
    return x ^ (x >> 31)


def key(*parts: int) -> int:
    h = 0
    for part in parts:
        h = mix((h + GAMMA * (part + 1)) & MASK)
    return h


def perm(n: int, of_key: int) -> list[int]:
    drawn = [mix((of_key + GAMMA * i) & MASK) for i in range(1, n + 1)]
    return sorted(range(n), key=lambda i: drawn[i])


@dataclass(frozen=True)
class Row:
    """What one row of a batch must be."""

    input_ids: list[int]
    labels: list[int]
    document_ids: list[int]
    position_ids: list[int]
    keys: list[str]
    """Of the records in it, in order."""


@dataclass
class Reference:
    """The token stream of a corpus that is held in memory."""

    shards: Sequence[ShardSpec]
    tokenizers: Tokenizers
    sequence_length: int
    batch_size: int
    seed: int
    window_shards: int
    image_first: float
    places: bool
    bos: bool
    weights: Mapping[str, float] | None = None
    _epochs: dict[tuple[int, int], list[tuple[int, str, list[int]]]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sources = records_by_source(self.shards)
        # Sources without a record do not count.
        self.names = [name for name, held in sources.items() if sum(len(s.records) for s in held)]
        self.sources = [sources[name] for name in self.names]
        self.totals = [
            sum(len(self.document(record, True)) for shard in held for record in shard.records)
            for held in self.sources
        ]
        self.num_sequences = [-(-total // self.sequence_length) for total in self.totals]
        self.quotas = self._quotas()
        slots = [
            (Fraction(2 * i + 1, 2 * quota), k, i)
            for k, quota in enumerate(self.quotas)
            for i in range(quota)
        ]
        self.slots = [(k, i) for _, k, i in sorted(slots)]

    def _quotas(self) -> list[int]:
        shares = [Fraction(total) for total in self.totals]
        if self.weights is not None:
            shares = [Fraction(str(self.weights[name])) for name in self.names]
        weights = [share / sum(shares) for share in shares]
        m = 0
        while True:
            m += 1
            slots = m * self.batch_size
            quotas = [math.floor(weight * slots) for weight in weights]
            rest = [weight * slots - quota for weight, quota in zip(weights, quotas, strict=True)]
            by_rest = sorted(range(len(rest)), key=lambda k: (-rest[k], k))
            for k in by_rest[: slots - sum(quotas)]:
                quotas[k] += 1
            errors = [
                abs(Fraction(quota, slots) - weight) / weight
                for weight, quota in zip(weights, quotas, strict=True)
            ]
            if min(quotas) >= 1 and max(errors) <= Fraction(1, 100):
                return quotas

    def document(self, record: Record, image_first: bool) -> list[int]:
        """The tokens of a record."""
        sizes = self.tokenizers
        bos, eos, image_start, image_end = range(sizes.num_text_ids, sizes.num_text_ids + 4)
        offset = sizes.num_text_ids + 5
        words = [offset + w for w in record.image if self.places or w >= sizes.num_places]
        text, opening = list(record.text), [bos] if self.bos else []
        if not record.image:
            return [*opening, *text, eos]
        if image_first:
            return [*opening, image_start, *words, image_end, *text, eos]
        return [*opening, *text, image_start, *words, image_end, eos]

    def epoch(self, k: int, epoch: int) -> list[tuple[int, str, list[int]]]:
        """The documents of an epoch of source k: (place in the virtual stream, key, tokens)."""
        if (k, epoch) not in self._epochs:
            self._epochs[k, epoch] = self._shuffled(k, epoch)
        return self._epochs[k, epoch]

    def _shuffled(self, k: int, epoch: int) -> list[tuple[int, str, list[int]]]:
        shards = self.sources[k]
        order = [shards[i] for i in perm(len(shards), key(self.seed, k, epoch, 0))]
        documents, place = [], 0
        for w, first in enumerate(range(0, len(order), self.window_shards)):
            window = [r for s in order[first : first + self.window_shards] for r in s.records]
            draws = key(self.seed, k, epoch, 2, w)
            for j in perm(len(window), key(self.seed, k, epoch, 1, w)):
                drawn = (mix((draws + GAMMA * j) & MASK) >> 11) * 2.0**-53
                tokens = self.document(window[j], drawn < self.image_first)
                documents.append((place, window[j].key, tokens))
                place += len(tokens)
        return documents

    def locate(self, step: int, row: int) -> tuple[int, int, int]:
        """(source, its epoch, sequence) of a row."""
        n = step * self.batch_size + row
        t, j = divmod(n, len(self.slots))
        k, o = self.slots[j]
        e, r = divmod(t * self.quotas[k] + o, self.num_sequences[k])
        lanes = min(self.quotas[k], self.num_sequences[k])
        i, g = divmod(r, lanes)
        short, longer = divmod(self.num_sequences[k], lanes)
        return k, e, g * short + min(g, longer) + i

    def row(self, step: int, row: int) -> Row:
        k, epoch, sequence = self.locate(step, row)
        low, high = sequence * self.sequence_length, (sequence + 1) * self.sequence_length
        pad = self.tokenizers.num_text_ids + 4
        made = Row([], [], [], [], [])
        for place, name, tokens in self.epoch(k, epoch):
            if place >= high or place + len(tokens) <= low:
                continue
            first = max(low - place, 0)
            for index in range(first, min(len(tokens), high - place)):
                made.input_ids.append(tokens[index])
                made.labels.append(tokens[index + 1] if index + 1 < len(tokens) else IGNORED)
                made.document_ids.append(len(made.keys))
                made.position_ids.append(index - first)
            made.keys.append(name)
        for index in range(self.sequence_length - len(made.input_ids)):
            made.input_ids.append(pad)
            made.labels.append(IGNORED)
            made.document_ids.append(-1)
            made.position_ids.append(index)
        return made
