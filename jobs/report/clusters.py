"""Duplicates and evaluation pictures for a report: how many, how alike, and what they look like.

Counts come from the sampled shards, pictures from the few whose tars are opened. A cluster that
reaches over more shards than those is shown with the members that lie in them.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from jobs.report.data import ClusterMember, Contamination, DuplicateCluster, Duplicates
from jobs.report.stored import Fates, Pictures
from pipeline.shard_lookup import Place, ShardLookup, spread
from pipeline.shard_table import read_table
from schemas.storage import Store

MAX_CLUSTERS = 12
LEAST_ALIKE = 8
"""Of these, so many are those whose pictures differ most."""
MAX_MEMBERS = 6
MAX_HITS = 6
"""Pictures of one evaluation set."""
LEADER = "first"
"""How the first picture of a cluster is called."""
PERCEPTUAL = "perceptual"


@dataclass(frozen=True, slots=True)
class _Related:
    """One pair's place in its cluster."""

    place: Place
    key: str
    relation: str
    distance: int


@dataclass(kw_only=True, slots=True)
class Relations:
    """What was read of relations."""

    num_pairs: int = 0
    relations: Counter[str] = field(default_factory=Counter)
    distances: Counter[int] = field(default_factory=Counter)
    contaminated: Counter[str] = field(default_factory=Counter)
    clusters: list[tuple[int, list[_Related]]] = field(default_factory=list)
    """(members, those that are shown)."""
    hits: dict[str, list[_Related]] = field(default_factory=dict)
    """Evaluation set -> the pairs that are shown."""

    def pairs(self) -> Iterator[tuple[Place, str]]:
        """The pairs whose pictures are shown."""
        for members in (*(members for _, members in self.clusters), *self.hits.values()):
            for item in members:
                yield item.place, item.key


def read_relations(
    store: Store, lookup: ShardLookup, places: Sequence[Place], shown: Sequence[Place]
) -> Relations | None:
    """The relations of some shards, or None where the version has none of them.

    Args:
        store: the corpus.
        lookup: the version's shards.
        places: the shards that are counted, in ingest order.
        shown: those of them whose pictures may be shown.
    """
    found = Relations()
    members: dict[str, list[_Related]] = {}
    for place in places:
        row = lookup.one("relations", place)
        if row is None:
            continue
        table = read_table(store, row)
        columns = {name: table[name].to_pylist() for name in table.column_names}
        found.num_pairs += table.num_rows
        is_shown = place in shown
        kinds = columns.get("relation") or [None] * table.num_rows
        sets = columns.get("contaminated_by") or [None] * table.num_rows
        for key, cluster, is_leader, distance, kind, evaluation_set in zip(
            *(columns[name] for name in ("key", "cluster", "is_leader", "distance")),
            kinds,
            sets,
            strict=True,
        ):
            item = _Related(place, key, LEADER if is_leader else kind or "bytes", distance)
            if not is_leader:
                found.relations[item.relation] += 1
                if kind == PERCEPTUAL:
                    found.distances[distance] += 1
            if evaluation_set is not None:
                found.contaminated[evaluation_set] += 1
                _show_hit(found.hits.setdefault(evaluation_set, []), item, is_shown=is_shown)
            if is_shown:
                members.setdefault(cluster, []).append(item)
    found.clusters = _choose(members)
    return found if found.num_pairs else None


def _show_hit(hits: list[_Related], item: _Related, *, is_shown: bool) -> None:
    if is_shown and len(hits) < MAX_HITS:
        hits.append(item)


def _choose(members: Mapping[str, list[_Related]]) -> list[tuple[int, list[_Related]]]:
    """Clusters of several pictures with their first one: from the least alike to the most."""
    several = [
        (cluster, items)
        for cluster, items in members.items()
        if len(items) > 1 and any(item.key == cluster for item in items)
    ]
    several.sort(key=lambda found: (max(map(_likeness, found[1])), found[0]), reverse=True)
    # What was nearly not a duplicate is of most interest; of the rest, some of every kind.
    chosen = several[:LEAST_ALIKE] + spread(several[LEAST_ALIKE:], MAX_CLUSTERS - LEAST_ALIKE)
    return [(len(items), _least_alike(items)) for _, items in chosen]


def _likeness(item: _Related) -> tuple[int, int]:
    """Greater for a picture that is less like the first one."""
    return item.distance, (LEADER, "bytes", "pixels", PERCEPTUAL).index(item.relation)


def _least_alike(items: Sequence[_Related]) -> list[_Related]:
    """The first picture, then those that differ most from it."""
    ordered = sorted(items, key=_likeness, reverse=True)
    return sorted(ordered, key=lambda item: item.relation != LEADER)[:MAX_MEMBERS]


def show_duplicates(
    found: Relations, pictures: Pictures, fates: Mapping[Place, Fates]
) -> Duplicates | None:
    """The duplicates with their pictures, or None where nothing is like anything else."""
    if not found.relations:
        return None
    return Duplicates(
        num_pairs=found.num_pairs,
        num_later=found.relations.total(),
        relations=dict(found.relations.most_common()),
        distances=dict(sorted(found.distances.items())),
        clusters=tuple(
            DuplicateCluster(num_members=size, members=_members(items, pictures, fates))
            for size, items in found.clusters
        ),
    )


def show_contamination(
    found: Relations, pictures: Pictures, fates: Mapping[Place, Fates]
) -> list[Contamination]:
    """The evaluation sets that were hit, most hits first."""
    return [
        Contamination(
            evaluation_set=name,
            num_pairs=count,
            examples=_members(found.hits.get(name, ()), pictures, fates),
        )
        for name, count in found.contaminated.most_common()
    ]


def _members(
    items: Iterable[_Related], pictures: Pictures, fates: Mapping[Place, Fates]
) -> tuple[ClusterMember, ...]:
    return tuple(
        ClusterMember(
            image=pictures[item.place, item.key].image,
            key=item.key,
            caption=pictures[item.place, item.key].caption,
            relation=item.relation,
            distance=item.distance,
            fate=fates[item.place].told(item.key),
        )
        for item in items
    )
