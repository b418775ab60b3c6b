"""How long do relations of ten million pictures take, how much memory, and is anything missed?

Writes image signals of generated hashes with planted near duplicates to a temporary folder, relates
them all in a fresh process as `apply` does, then relates one more shard to what is there. Planted
are clusters of 2 to 1,000 hashes within 0 to 4 bits of one, with decoys at 5 and 6 bits, and
families of 2,000 that share 40 of their bits, as scans and screenshots do. Every merge is checked
against the bits of both hashes; a sample of clusters of every size against the definition, one
hash after the other. Prints a table, then one JSON line.

    python benchmarks/relate.py [--pictures 10000000] [--seed 0]
"""

import argparse
import json
import multiprocessing
import platform
import resource
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.fixed_text import write_fixed
from pipeline.lineage import relations_chain, want_relations, want_signal
from pipeline.shard_table import read_table, write_table
from schemas.catalog import ShardRow
from schemas.fingerprint import digest
from schemas.layout import shard_name, signals_path
from schemas.record import KEY_CHARACTERS
from schemas.signals import IMAGE
from schemas.storage import Store

PICTURES_PER_SHARD = 10_000
DISTANCE = 4
CLUSTER_SIZES = (2, 3, 10, 100, 1000)
CLUSTER_SHARE = 0.04
"""Of all hashes, in clusters of one size."""
DECOY_SHARE = 0.2
FAMILY_SIZE, FAMILY_SHARE, FAMILY_FREE_BITS = 2000, 0.1, 24
CHECKED_GROUPS = 200
"""Of each size."""
TARGET_SECONDS, TARGET_BYTES, TARGET_RECALL = 1200, 4 << 30, 0.99


@dataclass(frozen=True, slots=True)
class Planted:
    """Generated hashes in ingest order."""

    hashes: NDArray[np.uint64]
    groups: NDArray[np.int64]
    """(n,) which cluster or family a hash is of; -1 for none."""


def plant(num_pictures: int, seed: int) -> Planted:
    """Hashes with planted near duplicates, shuffled."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 2**64, num_pictures, np.uint64)
    groups = np.full(num_pictures, -1, np.int64)
    start, group = 0, 0
    for size in CLUSTER_SIZES:
        num_groups = int(num_pictures * CLUSTER_SHARE) // size
        part = slice(start, start + num_groups * size)
        of_group = np.repeat(np.arange(num_groups), size)
        hashes[part] = hashes[part][::size][of_group] ^ _flips(len(of_group), rng)
        groups[part] = group + of_group
        start, group = part.stop, group + num_groups
    num_families = int(num_pictures * FAMILY_SHARE) // FAMILY_SIZE
    part = slice(start, start + num_families * FAMILY_SIZE)
    of_family = np.repeat(np.arange(num_families), FAMILY_SIZE)
    hashes[part] = _families(hashes[part], num_families, rng)
    groups[part] = group + of_family
    order = rng.permutation(num_pictures)
    return Planted(hashes[order], groups[order])


def _flips(number: int, rng: np.random.Generator) -> NDArray[np.uint64]:
    """Masks of 0 to 4 bits, and of 5 or 6 for decoys."""
    is_decoy = rng.random(number) < DECOY_SHARE
    counts = np.where(is_decoy, rng.integers(5, 7, number), rng.integers(0, 5, number))
    first, stride = rng.integers(0, 64, number), 2 * rng.integers(0, 32, number) + 1
    masks = np.zeros(number, np.uint64)
    for bit in range(6):
        # An odd stride meets 64 places before it meets one twice.
        mask = np.uint64(1) << ((first + bit * stride) % 64).astype(np.uint64)
        masks |= np.where(bit < counts, mask, np.uint64(0))
    return masks


def _families(
    hashes: NDArray[np.uint64], num_families: int, rng: np.random.Generator
) -> NDArray[np.uint64]:
    free = np.zeros(num_families, np.uint64)
    for family in range(num_families):
        bits = rng.permutation(64)[:FAMILY_FREE_BITS].astype(np.uint64)
        free[family] = np.bitwise_or.reduce(np.uint64(1) << bits)
    free = np.repeat(free, FAMILY_SIZE)
    heads = np.repeat(hashes[::FAMILY_SIZE], FAMILY_SIZE)
    return heads & ~free | hashes & free


def write_signals(root: Path, num_pictures: int, seed: int) -> list[tuple[ShardRow, ShardRow]]:
    """Pair shard rows (there is no file behind them), and their image signals on disk."""
    store, rng = Store(root), np.random.default_rng(seed + 1)
    hashes = plant(num_pictures, seed).hashes
    return [
        _write_shard(store, number, start, hashes[start : start + PICTURES_PER_SHARD], rng)
        for number, start in enumerate(range(0, num_pictures, PICTURES_PER_SHARD))
    ]


def _write_shard(
    store: Store,
    number: int,
    start: int,
    hashes: NDArray[np.uint64],
    rng: np.random.Generator,
) -> tuple[ShardRow, ShardRow]:
    size = len(hashes)
    keys = [f"{start + place:0{KEY_CHARACTERS}d}".encode() for place in range(size)]
    columns: dict[str, Any] = {name: pa.nulls(size, kind) for name, kind in IMAGE.columns.items()}
    columns["key"] = write_fixed(np.array(keys))
    for name in ("sha256", "pixels_sha256"):
        digits = np.frombuffer(b"0123456789abcdef", np.uint8)[rng.integers(0, 16, (size, 64))]
        columns[name] = write_fixed(np.ascontiguousarray(digits).view("S64")[:, 0])
    columns["phash"] = pa.array(hashes)
    pairs = ShardRow(
        kind="pairs",
        source="generated",
        shard=shard_name(number),
        ordinal=number,
        path="",
        fingerprint="",
        records=digest(str(number)),
        sha256="",
        bytes=0,
        num_rows=size,
        num_records=size,
    )
    wanted = want_signal(pairs, "image", {})
    path = signals_path("image", pairs.source, pairs.shard, wanted.fingerprint)
    schema = IMAGE.arrow()
    table = pa.table({name: columns[name] for name in schema.names}, schema=schema)
    file = write_table(store, path, table)
    signal = wanted.row(
        path=path, sha256=file.sha256, bytes=file.bytes, num_rows=size, num_records=size
    )
    return pairs, signal


def relate_all(
    root: Path,
    corpus: Sequence[tuple[ShardRow, ShardRow]],
    known: Sequence[ShardRow],
) -> tuple[list[ShardRow], dict[str, float]]:
    """Writes the relations that are not known; their rows, and what that took."""
    from pipeline.relate import relate

    before_bytes = _peak_bytes()
    existing = {(row.source, row.shard): row for row in known}
    wanted, earlier = {}, ""
    for pairs, _ in corpus:
        if (pairs.source, pairs.shard) not in existing:
            item = want_relations(pairs, earlier, distance=DISTANCE)
            wanted[pairs.source, pairs.shard] = item
        earlier = relations_chain(earlier, pairs)
    started, cpu = time.perf_counter(), time.process_time()
    rows = list(
        relate(
            Store(root),
            [pairs for pairs, _ in corpus],
            {(signal.source, signal.shard): signal for _, signal in corpus},
            existing,
            wanted,
            distance=DISTANCE,
        )
    )
    return rows, {
        "seconds": time.perf_counter() - started,
        "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": _peak_bytes(),
        "bytes_of_imports": before_bytes,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def check(root: Path, rows: Sequence[ShardRow], num_pictures: int, seed: int) -> dict[str, Any]:
    """Compares relations with the hashes that they are of."""
    planted = plant(num_pictures, seed)
    hashes = planted.hashes
    leaders, distances, is_leader = _read_relations(Store(root), rows)
    bits = np.bitwise_count(hashes ^ hashes[leaders])
    is_false = (bits != distances) | (bits > DISTANCE) | ~is_leader[leaders]
    is_false |= leaders > np.arange(num_pictures)
    found = {
        "leaders": int(is_leader.sum()),
        "merged": int((~is_leader).sum()),
        "false_merges": int(is_false.sum()),
        "single_merged": int((~is_leader & (planted.groups < 0)).sum()),
    }
    expected = missed = other = 0
    for members in _sampled_groups(planted.groups, seed):
        nearest = _by_definition(hashes[members])
        led = nearest != np.arange(len(members))
        expected += int(led.sum())
        missed += int((led & is_leader[members]).sum())
        other += int((members[nearest] != leaders[members]).sum())
    recall = 1 - missed / max(1, expected)
    return {**found, "checked": expected, "recall": recall, "other_leader": other}


def _read_relations(
    store: Store, rows: Sequence[ShardRow]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_]]:
    columns: tuple[list[Any], list[Any], list[Any]] = ([], [], [])
    for row in rows:
        table = read_table(store, row, columns=["cluster", "distance", "is_leader"])
        columns[0].append(table["cluster"].cast(pa.int64()).to_numpy())
        columns[1].append(table["distance"].to_numpy())
        columns[2].append(table["is_leader"].to_numpy())
    leaders, distances, is_leader = map(np.concatenate, columns)
    return leaders, distances, is_leader


def _sampled_groups(groups: NDArray[np.int64], seed: int) -> Iterator[NDArray[np.int64]]:
    """Rows of some groups of each size, in ingest order."""
    rng = np.random.default_rng(seed + 2)
    order = np.argsort(groups, kind="stable")
    order = order[np.searchsorted(groups[order], 0) :]
    firsts = np.flatnonzero(np.diff(groups[order], prepend=-1))
    sizes = np.diff(firsts, append=len(order))
    for size in np.unique(sizes):
        chosen = np.flatnonzero(sizes == size)
        for item in rng.permutation(chosen)[:CHECKED_GROUPS]:
            yield order[firsts[item] : firsts[item] + size]


def _by_definition(hashes: NDArray[np.uint64]) -> NDArray[np.int64]:
    """(m,) the leader of each of a group's hashes, one hash after the other."""
    leaders: list[int] = []
    nearest = np.zeros(len(hashes), np.int64)
    for row, value in enumerate(hashes):
        bits = np.bitwise_count(hashes[leaders] ^ value)
        best = int(bits.argmin()) if leaders else 0
        if leaders and bits[best] <= DISTANCE:
            nearest[row] = leaders[best]
        else:
            nearest[row] = row
            leaders.append(row)
    return nearest


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, from a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def measure(root: Path, num_pictures: int, seed: int) -> dict[str, Any]:
    """All measurements, printed as they come."""
    corpus = in_fresh_process(write_signals, root, num_pictures, seed)
    rows, first = in_fresh_process(relate_all, root, corpus, [])
    print(f"{num_pictures:,} pictures in {len(corpus):,} shards, distance {DISTANCE}")
    _show("all at once", first)
    checked = in_fresh_process(check, root, rows, num_pictures, seed)
    _, again = in_fresh_process(relate_all, root, corpus, rows[:-1])
    _show("one shard more", again)
    print(
        f"recall {checked['recall']:.4%} of {checked['checked']:,} checked (target "
        f"{TARGET_RECALL:.0%}), {checked['other_leader']} with another leader than by definition\n"
        f"false merges {checked['false_merges']} of {checked['merged']:,} (target 0)"
    )
    versions = {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
    }
    settings = {"pictures": num_pictures, "distance": DISTANCE, "seed": seed}
    return {
        "all": first,
        "append": again,
        "check": checked,
        "versions": versions,
        "settings": settings,
    }


def _show(name: str, found: dict[str, float]) -> None:
    print(
        f"{name:16} {found['seconds']:7.1f} s ({found['cpu_seconds']:.1f} s CPU), peak "
        f"{found['peak_bytes'] / 1e9:.2f} GB (targets at ten million {TARGET_SECONDS} s, "
        f"{TARGET_BYTES / 1e9:.1f} GB)",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--pictures", type=int, default=10_000_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--folder", help="where to put the files; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure(Path(folder), options.pictures, options.seed)
    print(json.dumps(report))


if __name__ == "__main__":
    main()
