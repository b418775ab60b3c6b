"""Rates: the seconds that a record took, by stage, kind of work and numeric environment.

Every catalog row says what it took and what was done; token shards also by which repair. A version
carries the rates that its own rows no longer show, so that a recode can still be priced after five
new thresholds. Nothing is guessed: what was never done has no rate. Costs a pass over the known
rows: 0.4 s for the 600,000 of 100,000 shards.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import lru_cache

from pipeline.lineage import TRAIN
from pipeline.repair import Repair
from schemas.catalog import ShardRow
from schemas.fingerprint import canonical_json

STAGE_OF = {
    "intake": "intake",
    "pairs": "fetch",
    "signals": "measure",
    "relations": "relate",
    "selected": "select",
    "tokens": "encode",
}
"""Kind -> the stage that makes it."""
METADATA = "rates"
"""Where a version keeps its rates."""
_CPU = ("cpu", "pillow")
"""How numeric environments without an accelerator begin."""
_MIXED = " + "
"""Between the environments of a shard whose words come from several."""

_LIKE = {
    Repair.SUBSET: (Repair.SUBSET,),
    Repair.RETEXT: (Repair.RETEXT,),
    Repair.EXTEND: (Repair.ENCODE, Repair.RECODE, Repair.EXTEND),
    Repair.RECODE: (Repair.RECODE, Repair.ENCODE, Repair.EXTEND),
    Repair.ENCODE: (Repair.ENCODE, Repair.RECODE, Repair.EXTEND),
}
"""Repairs whose rate tells that of a repair, the nearest first: all that read images cost what
encoding an image costs, to within some percent."""
_LIKE_DOCUMENTS = {
    Repair.SUBSET: (Repair.SUBSET,),
    Repair.RETEXT: (Repair.RETEXT, Repair.ENCODE, Repair.EXTEND),
    Repair.EXTEND: (Repair.ENCODE, Repair.RETEXT, Repair.EXTEND),
    Repair.ENCODE: (Repair.ENCODE, Repair.RETEXT, Repair.EXTEND),
}
"""The same of documents, which have no images."""


What = tuple[str, str, str, str]
"""(stage, work, of, numeric)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rate:
    """What one kind of work took so far."""

    stage: str
    work: str
    """A signal group, a repair class, or ""."""
    of: str = ""
    """For encode, `pairs` or `documents`; for intake and fetch, the source."""
    numeric: str
    """The numeric environment it ran in."""
    seconds: float
    """Of workers."""
    records: int
    """Records that were worked on."""

    @property
    def seconds_per_record(self) -> float:
        return self.seconds / self.records

    @property
    def on_gpu(self) -> bool:
        """Whether its workers held a GPU."""
        return is_gpu(self.numeric)

    @property
    def what(self) -> What:
        return self.stage, self.work, self.of, self.numeric


def is_gpu(numeric: str) -> bool:
    """Whether a numeric environment is that of an accelerator."""
    return bool(numeric) and not numeric.startswith(_CPU)


class Rates:
    """The rates that are known."""

    def __init__(self, rates: Iterable[Rate] = ()) -> None:
        self._rates = {rate.what: rate for rate in rates}

    def __iter__(self) -> Iterator[Rate]:
        yield from (self._rates[what] for what in sorted(self._rates))

    def of_rows(self, stage: str, work: str = "", *, of: str = "") -> Rate | None:
        """The rate of a kind of work; of several environments, of the one that did most of it."""
        found = [rate for what, rate in self._rates.items() if what[:3] == (stage, work, of)]
        return max(found, key=lambda rate: rate.records, default=None)

    def of_repair(self, repair: Repair, *, is_text: bool) -> Rate | None:
        """The rate of a repair, or of the one that is nearest to it."""
        of = "documents" if is_text else "pairs"
        for like in (_LIKE_DOCUMENTS if is_text else _LIKE)[repair]:
            found = self.of_rows("encode", like.value, of=of)
            if found is not None:
                return found
        return None


def known_rates(rows: Iterable[ShardRow], recorded: Mapping[str, str]) -> Rates:
    """The rates that catalog rows tell, and of what they do not tell those that were recorded.

    Args:
        rows: all that are known, of older versions too.
        recorded: a version's metadata.
    """
    sums: dict[What, list[float]] = {}
    for row in rows:
        found = _work_of(row)
        if found is not None:
            what, records = found
            total = sums.setdefault(what, [0.0, 0])
            total[0] += row.made_in_seconds
            total[1] += records
    told = [
        Rate(stage=stage, work=work, of=of, numeric=numeric, seconds=seconds, records=int(records))
        for (stage, work, of, numeric), (seconds, records) in sums.items()
    ]
    return Rates([*recorded_rates(recorded), *told])


def recorded_rates(metadata: Mapping[str, str]) -> list[Rate]:
    """The rates that a version carries; none in one that an earlier release wrote."""
    return [Rate(**item) for item in json.loads(metadata.get(METADATA, "[]"))]


def spell_rates(rates: Iterable[Rate]) -> str:
    """Rates as a version carries them: canonical JSON."""
    return canonical_json([asdict(rate) for rate in rates]).decode()


def spell_work(repair: Repair, records: int) -> str:
    """What a token shard's row says of how it was made, as its `states`."""
    return canonical_json({repair.value: records}).decode()


def _work_of(row: ShardRow) -> tuple[What, int] | None:
    """What a row was work on, and on how many records; None where it does not tell."""
    stage = STAGE_OF[row.kind]
    if row.kind == "tokens":
        return _token_work(row)
    if row.num_rows == 0 or (row.kind == "selected" and row.split != TRAIN):
        return None  # both splits of a selection are made at once
    of = row.source if row.kind in ("intake", "pairs") else ""
    return (stage, row.signal, of, row.numeric), row.num_rows


def _token_work(row: ShardRow) -> tuple[What, int] | None:
    done = _repair_done(row.states)
    if done is None or _MIXED in row.numeric:
        return None
    repair, records = done
    # Of a shard that was only cut, or whose captions alone were tokenized, `numeric` tells where
    # its image words come from, which is no part of that work.
    numeric = "" if repair in (Repair.SUBSET, Repair.RETEXT) else row.numeric
    of = "pairs" if has_images(row.parts) else "documents"
    return ("encode", repair.value, of, numeric), records


@lru_cache(maxsize=1 << 12)
def _repair_done(states: str) -> tuple[Repair, int] | None:
    """What `spell_work` wrote; None in rows of earlier releases, and where nothing was to do."""
    done = [(Repair(name), records) for name, records in json.loads(states).items() if records]
    return done[0] if done else None


@lru_cache(maxsize=1 << 10)
def has_images(parts: str) -> bool:
    """Whether a token shard's parts are those of pairs, not of documents."""
    return bool(json.loads(parts)["image_tokenizer"])
