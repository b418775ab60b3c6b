"""What does the driver cost as a corpus grows: to plan, to publish, to list, to open for training?

Writes synthetic corpora of 1,000, 10,000 and 100,000 pair shards of 10,000 records: a catalog of
seven outputs a shard, whose fingerprints are those that a plan wants, and no files. Each
measurement is a process of its own; its peak memory includes Python and the imports. Prints a
table, then one JSON line.

    python benchmarks/catalog.py [--shards 1000 10000 100000]
"""

import argparse
import json
import multiprocessing
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pipeline.corpus import TokenizerReaders, open_corpus
from pipeline.forecast import forecast
from pipeline.funnel import Funnel
from pipeline.lineage import (
    TRAIN,
    Wanted,
    hash_settings,
    relations_chain,
    selected_chain,
    want_relations,
    want_selected,
    want_signal,
    want_tokens,
)
from pipeline.plan import plan_sources
from pipeline.signals import open_signals
from schemas.catalog import Catalog, ShardRow
from schemas.declaration import load_declaration
from schemas.fingerprint import canonical_json, digest
from schemas.layout import DECLARATION, shard_name
from schemas.storage import Store

RECORDS = 10_000
KEPT = 7_000
DECLARED = """\
sources:
  - {name: web, urls: list.csv}
select:
  large_enough: "min_side >= 200"
unique: {by: cluster}
tokenizer: TOKENIZER
text_tokenizer: text
"""
READERS = TokenizerReaders(image=digest, text=digest)
"""Fingerprints by name alone: no tokenizer is opened."""


def write_corpus(root: str, num_shards: int) -> None:
    """A corpus of so many shards that is current, without a file but its catalog and list."""
    store = Store(root)
    store.write(DECLARATION, DECLARED.replace("TOKENIZER", "first").encode())
    store.write("list.csv", b"URL,TEXT\nhttp://a.example/1.jpg,one\n")
    declaration, text = load_declaration(store)
    corpus = open_corpus(root, readers=READERS)
    signals = {item.schema.name: item.settings() for item in open_signals(declaration, store)}
    hashes = hash_settings(signals["image"])
    rows: list[ShardRow] = []
    earlier_relations = earlier_selected = ""
    funnel = canonical_json(Funnel(num_records=RECORDS, splits=((TRAIN, KEPT),)).as_counts())
    for number in range(num_shards):
        intake = _observed("intake", number, states={"pending": RECORDS})
        pairs = _observed("pairs", number, states={"ok": RECORDS}, inputs=intake.sha256)
        measured = [_derived(want_signal(pairs, *signal)) for signal in signals.items()]
        relations = _derived(want_relations(pairs, earlier_relations, hashes=hashes))
        earlier_relations = relations_chain(earlier_relations, pairs)
        columns = sorted(row.fingerprint for row in [*measured, relations])
        wanted = want_selected(
            pairs,
            declaration=declaration,
            tombstones="",
            columns=columns,
            earlier=earlier_selected,
        )
        earlier_selected = selected_chain(earlier_selected, columns)
        selected = replace(
            _derived(replace(wanted, split=TRAIN, records=digest("kept", str(number)))),
            num_records=KEPT,
            states=funnel.decode(),
        )
        tokens = want_tokens(
            selected,
            image_tokenizer=corpus.image_tokenizer,
            text_tokenizer=corpus.text_tokenizer,
        )
        encoded = replace(
            _derived(tokens),
            num_records=KEPT,
            num_images=KEPT,
            num_codes=KEPT * 90,
            num_places=KEPT,
        )
        rows += [intake, pairs, *measured, relations, selected, encoded]
    stamps = {f"source:{source.source.name}": source.stamp for source in plan_sources(corpus)}
    Catalog(store).commit(rows, parent=None, declaration=text, complete=True, extra=stamps)


def _observed(kind: str, number: int, *, states: dict[str, int], inputs: str = "") -> ShardRow:
    content = digest(kind, str(number))
    return ShardRow(
        kind=kind,
        source="web",
        shard=shard_name(number),
        ordinal=number,
        path=f"{kind}/web/{shard_name(number)}-{content[:16]}",
        fingerprint=content,
        records=digest("records", str(number)),
        inputs=inputs,
        sha256=content,
        bytes=400_000_000,
        num_rows=RECORDS,
        num_records=RECORDS,
        states=canonical_json(states).decode(),
        made_in_seconds=100.0,
    )


def _derived(wanted: Wanted) -> ShardRow:
    return wanted.row(
        path=f"{wanted.kind}/{wanted.signal}/web/{wanted.shard}-{wanted.fingerprint[:16]}",
        sha256=digest("file", wanted.fingerprint),
        bytes=1_000_000,
        num_rows=RECORDS,
        num_records=RECORDS,
        made_in_seconds=10.0,
        numeric="cpu-float32-torch2.15.0-batch64",
    )


def plan_current(root: str) -> None:
    """`plan` with nothing to do."""
    assert forecast(open_corpus(root, readers=READERS, check_files=False)).is_current


def plan_tokenizer(root: str) -> None:
    """`plan` after a tokenizer change: every token shard is stale."""
    store = Store(root)
    text = store.read(DECLARATION)
    store.write(DECLARATION, text.replace(b"first", b"second"))
    try:
        found = forecast(open_corpus(root, readers=READERS, check_files=False))
    finally:
        store.write(DECLARATION, text)
    encode = found.stages[-1]
    assert (encode.num_current, encode.num_stale > 0) == (0, True)


def publish(root: str) -> None:
    """Commits the newest version's rows once more."""
    catalog = Catalog(Store(root))
    newest = catalog.read()
    rows = [row for kind in newest.table["kind"].unique().to_pylist() for row in newest.rows(kind)]
    started = time.monotonic()
    catalog.commit(
        rows,
        parent=newest.number,
        declaration=newest.declaration,
        complete=True,
        extra={"source:web": newest.metadata["source:web"]},
    )
    print(f"    of which the commit itself {time.monotonic() - started:.2f} s", flush=True)


def versions(root: str) -> None:
    """What `pixelese versions` reads."""
    from jobs.commands.versions import versions as command

    command(root)


def open_training(root: str) -> None:
    """What a trainer reads before its first batch."""
    from trainer.inventory import read_inventory

    read_inventory(root, version=None, split="train")


CASES: dict[str, Callable[[str], None]] = {
    "plan, nothing to do": plan_current,
    "plan, another tokenizer": plan_tokenizer,
    "publish": publish,
    "versions": versions,
    "open for training": open_training,
}


def _measure(name: str, root: str, pipe: "multiprocessing.connection.Connection") -> None:
    started = time.monotonic()
    CASES[name](root)
    seconds = time.monotonic() - started
    pipe.send((seconds, _peak_bytes()))


def _peak_bytes() -> int:
    """Of this program: `ru_maxrss` would count the process that it was started from."""
    (line,) = (
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def measure(name: str, root: str) -> tuple[float, int]:
    """Seconds and peak bytes of one case in a fresh process."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_measure, args=(name, root, theirs))
    process.start()
    process.join()
    if not ours.poll():
        raise RuntimeError(f"{name}: the process ended with status {process.exitcode}")
    found: tuple[float, int] = ours.recv()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--shards", type=int, nargs="+", default=[1000, 10_000, 100_000])
    options = parser.parse_args()
    results: dict[str, dict[str, tuple[float, int]]] = {}
    for num_shards in options.shards:
        with tempfile.TemporaryDirectory() as folder:
            root = str(Path(folder) / "corpus")
            write_corpus(root, num_shards)
            results[str(num_shards)] = {name: measure(name, root) for name in CASES}
    print(f"{'':26}" + "".join(f"{int(count):>22,} shards" for count in results))
    for name in CASES:
        cells = (found[name] for found in results.values())
        print(f"{name:26}" + "".join(f"{s:>14.2f} s {b / 1e6:>8.0f} MB" for s, b in cells))
    print(json.dumps({"machine": platform.processor(), "results": results}))


if __name__ == "__main__":
    main()
