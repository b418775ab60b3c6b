"""The funnel: how many records each step of a selection drops, alone and in order.

"Alone" says what a rule would drop if it were the only one; "in order", what it drops of those that
the rules before it let through. Both are sums, so that funnels of shards and sources add up.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

REMOVED = "removed"
"""The step that drops what has a tombstone."""
DECONTAMINATE = "decontaminate"
"""The step that drops what is in an evaluation set."""
UNIQUE = "unique"
"""The step that drops later members of a duplicate cluster."""
OWN_STEPS = (REMOVED, DECONTAMINATE, UNIQUE)
"""The steps after the rules, in their order; no rule can have their names."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RuleCount:
    """One rule's part in a funnel."""

    name: str
    dropped_alone: int
    dropped_in_order: int
    remaining: int
    """Records left after this rule and those before it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FunnelStep:
    """One line of a funnel as it is shown."""

    name: str
    alone: int | None
    """What it drops alone; None for what works only on the records that rules let through."""
    in_order: int
    remaining: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Funnel:
    """The counts of one selection."""

    num_records: int = 0
    """Records that went in."""
    rules: tuple[RuleCount, ...] = ()
    """In their declared order."""
    removed: int = 0
    decontaminated: int = 0
    unique: int = 0
    splits: tuple[tuple[str, int], ...] = ()
    """Split -> kept records."""

    @property
    def num_kept(self) -> int:
        """Records that came out."""
        return sum(size for _, size in self.splits)

    def __add__(self, other: "Funnel") -> "Funnel":
        """The sum over two sets of records. One of text has no rules: there, all remain."""
        names = list(dict.fromkeys(rule.name for rule in (*self.rules, *other.rules)))
        sizes = dict(self.splits)
        for split, size in other.splits:
            sizes[split] = sizes.get(split, 0) + size
        return Funnel(
            num_records=self.num_records + other.num_records,
            rules=tuple(_add(self._rule(name), other._rule(name)) for name in names),
            removed=self.removed + other.removed,
            decontaminated=self.decontaminated + other.decontaminated,
            unique=self.unique + other.unique,
            splits=tuple(sizes.items()),
        )

    def steps(self) -> list[FunnelStep]:
        """The rules, then OWN_STEPS."""
        found = [
            FunnelStep(
                name=rule.name,
                alone=rule.dropped_alone,
                in_order=rule.dropped_in_order,
                remaining=rule.remaining,
            )
            for rule in self.rules
        ]
        remaining = self.rules[-1].remaining if self.rules else self.num_records
        for name, dropped in self._own_steps().items():
            remaining -= dropped
            found.append(FunnelStep(name=name, alone=None, in_order=dropped, remaining=remaining))
        return found

    def as_counts(self) -> dict[str, int]:
        """The funnel as flat counts, as a catalog row carries them; `from_counts` reads them."""
        counts = {"records": self.num_records, **self._own_steps()}
        for place, rule in enumerate(self.rules):
            counts[f"rule.{place:03d}.{rule.name}.alone"] = rule.dropped_alone
            counts[f"rule.{place:03d}.{rule.name}.in_order"] = rule.dropped_in_order
        return counts | {f"split.{split}": size for split, size in self.splits}

    @classmethod
    def from_counts(cls, counts: Mapping[str, int]) -> "Funnel":
        """The inverse of `as_counts`, in whatever order the counts come."""
        remaining = counts["records"]
        rules = []
        for name in sorted(name for name in counts if name.startswith("rule.")):
            stem, _, kind = name.rpartition(".")
            if kind == "in_order":
                remaining -= counts[name]
                rules.append(
                    RuleCount(
                        name=stem.split(".", 2)[2],
                        dropped_alone=counts[f"{stem}.alone"],
                        dropped_in_order=counts[name],
                        remaining=remaining,
                    )
                )
        splits = sorted(name for name in counts if name.startswith("split."))
        return cls(
            num_records=counts["records"],
            rules=tuple(rules),
            removed=counts[REMOVED],
            decontaminated=counts.get(DECONTAMINATE, 0),  # older rows know no such step
            unique=counts[UNIQUE],
            splits=tuple((name.removeprefix("split."), counts[name]) for name in splits),
        )

    def _own_steps(self) -> dict[str, int]:
        drops = (self.removed, self.decontaminated, self.unique)
        return dict(zip(OWN_STEPS, drops, strict=True))

    def _rule(self, name: str) -> RuleCount:
        absent = RuleCount(
            name=name, dropped_alone=0, dropped_in_order=0, remaining=self.num_records
        )
        return next((rule for rule in self.rules if rule.name == name), absent)


def sum_funnels(funnels: Iterable[Funnel]) -> Funnel:
    """The sum of any number of funnels."""
    return sum(funnels, Funnel())


def render_funnel(funnel: Funnel) -> str:
    """The funnel as lines of plain text, columns aligned, without a final newline."""
    rows = [["", "alone", "in order", "remaining"]]
    rows.append(["records", "", "", f"{funnel.num_records:,}"])
    for step in funnel.steps():
        alone = "" if step.alone is None else f"{step.alone:,}"
        rows.append([step.name, alone, f"{step.in_order:,}", f"{step.remaining:,}"])
    rows.extend([split, "", "", f"{size:,}"] for split, size in funnel.splits)
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0]), *(row[column].rjust(widths[column]) for column in (1, 2, 3))]
        ).rstrip()
        for row in rows
    )


def _add(one: RuleCount, other: RuleCount) -> RuleCount:
    return RuleCount(
        name=one.name,
        dropped_alone=one.dropped_alone + other.dropped_alone,
        dropped_in_order=one.dropped_in_order + other.dropped_in_order,
        remaining=one.remaining + other.remaining,
    )
