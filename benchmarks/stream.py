"""How fast is the token stream, beside the fastest thing that could be done with the same tokens?

Generates a corpus (94 image words and 15 text ids a record on average) in a temporary folder and
measures, each in a fresh process: packed and shuffled batches for 8 and 256 lanes, with and without
document and position ids, seeks, and the opening of a catalog of 100,000 shards. Rates are ratios
to a canary, read before and after each: a flat uint16 memory map, in order, into int64 (8, 2048)
ids and shifted labels, one thread. Prints a table, then one JSON line.

    python benchmarks/stream.py [--records 1000000] [--seconds 5] [--repeats 3]
"""

import argparse
import json
import multiprocessing
import platform
import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from schemas.catalog import Catalog, ShardRow
from schemas.fingerprint import canonical_json, digest, file_sha256
from schemas.layout import shard_name, tokens_path
from schemas.storage import Store
from schemas.tokens import MAX_BATCH_RECORDS, TOKEN_FORMAT, TokenShardHeader

LENGTH = 2048
RECORDS_PER_SHARD = 10_000
MEAN_IMAGE_WORDS, MEAN_TEXT_IDS = 94, 15
HEADER = TokenShardHeader(
    fingerprint="",
    image_tokenizer=digest("image"),
    text_tokenizer=digest("text"),
    codebook_size=16_384,
    grid=16,
    positions="2d",
    num_text_ids=32_000,
)
PARTS = {
    "image_tokenizer": HEADER.image_tokenizer,
    "text_tokenizer": HEADER.text_tokenizer,
    "format": TOKEN_FORMAT,
}
KINDS = ("intake", "pairs", "signals", "relations", "selected", "tokens")


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """One measurement of the rate."""

    name: str
    lanes: int
    chunk: int
    ids: bool
    read_ahead: int = 0
    target: float
    """Of the canary."""


CASES = (
    Case(name="8 lanes x 64", lanes=8, chunk=64, ids=False, target=0.12),
    Case(name="256 lanes x 32", lanes=256, chunk=32, ids=False, target=0.08),
    Case(name="8 lanes x 64, document and position ids", lanes=8, chunk=64, ids=True, target=0.06),
    Case(
        name="256 lanes x 32, document and position ids", lanes=256, chunk=32, ids=True, target=0.06
    ),
    Case(
        name="8 lanes x 64, read-ahead thread",
        lanes=8,
        chunk=64,
        ids=False,
        read_ahead=2,
        target=0.0,  # none: a consumer that does nothing only adds the handing over
    ),
)


def write_shard(store: Store, number: int, num_records: int) -> ShardRow:
    """Writes a shard of random records; returns its catalog row."""
    rng = np.random.default_rng(number)
    lengths = np.clip(rng.normal(MEAN_IMAGE_WORDS, 30, num_records), 4, 256).astype(np.int32)
    texts = rng.poisson(MEAN_TEXT_IDS, num_records).astype(np.int32)
    fingerprint = digest("benchmark", str(number), str(num_records))
    schema = replace(HEADER, fingerprint=fingerprint).schema()
    keys = pa.array([f"{number:08d}{item:018d}" for item in range(num_records)])
    lowest = HEADER.num_patches
    columns = [
        keys,
        _lists(schema, "text", texts, rng.integers(0, HEADER.num_text_ids, texts.sum())),
        _lists(
            schema,
            "image",
            lengths,
            rng.integers(lowest, lowest + HEADER.codebook_size, lengths.sum()),
        ),
    ]
    local = store.scratch() / f"{number}.arrow"
    with pa.OSFile(str(local), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_table(pa.table(columns, schema=schema), max_chunksize=MAX_BATCH_RECORDS)
    row = catalog_row(number, num_records, int(texts.sum()), int(lengths.sum()))
    row = replace(
        row,
        fingerprint=fingerprint,
        path=tokens_path("laion", shard_name(number), fingerprint),
        sha256=file_sha256(local),
        bytes=local.stat().st_size,
    )
    store.publish(local, row.path)
    return row


def _lists(schema: pa.Schema, name: str, lengths: Any, values: Any) -> pa.Array:
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values.astype(np.uint16)), type=schema.field(name).type
    )


def catalog_row(
    number: int, num_records: int, num_text_ids: int, num_codes: int, *, kind: str = "tokens"
) -> ShardRow:
    """A row with plausible names and digests."""
    name = shard_name(number)
    fingerprint = digest(kind, name)
    return ShardRow(
        kind=kind,
        source="laion",
        shard=name,
        split="train" if kind in ("tokens", "selected") else "",
        ordinal=number,
        path=tokens_path("laion", name, fingerprint),
        fingerprint=fingerprint,
        parts=canonical_json(PARTS).decode(),
        records=digest("records", name),
        inputs=digest("inputs", name),
        sha256=digest("bytes", kind, name),
        bytes=2_000_000,
        num_rows=num_records,
        num_records=num_records,
        num_images=num_records,
        num_text_ids=num_text_ids,
        num_codes=num_codes,
    )


def write_corpus(root: Path, num_records: int) -> None:
    """A corpus of shards of RECORDS_PER_SHARD records."""
    store = Store(root)
    sizes = [RECORDS_PER_SHARD] * (num_records // RECORDS_PER_SHARD)
    if num_records % RECORDS_PER_SHARD:
        sizes.append(num_records % RECORDS_PER_SHARD)
    rows = [write_shard(store, number, size) for number, size in enumerate(sizes)]
    Catalog(store).commit(rows, parent=None, declaration="", complete=True)


def write_wide_catalog(root: Path, num_shards: int) -> None:
    """A version of many shards of six kinds; only the first token shard is really there."""
    store = Store(root)
    first = write_shard(store, 0, 100)
    rows = [
        catalog_row(number, RECORDS_PER_SHARD, 150_000, 940_000, kind=kind)
        for kind in KINDS
        for number in range(num_shards)
        if kind != "tokens" or number
    ]
    Catalog(store).commit([first, *rows], parent=None, declaration="", complete=True)


def write_canary(root: Path, num_tokens: int) -> None:
    """The flat file, of as many random tokens as the corpus has."""
    rng = np.random.default_rng(0)
    flat = rng.integers(0, 48_000, num_tokens, dtype=np.uint16)
    flat.tofile(root / "flat.bin")


def canary(root: Path, seconds: float) -> float:
    """Tokens/s of the flat file in order into int64 ids and shifted labels."""
    flat = np.memmap(root / "flat.bin", np.uint16, "r")
    tokens = 8 * LENGTH

    def batches() -> Iterator[int]:
        while True:
            for start in range(0, len(flat) - tokens - 1, tokens):
                flat[start : start + tokens].astype(np.int64).reshape(8, LENGTH)
                flat[start + 1 : start + tokens + 1].astype(np.int64).reshape(8, LENGTH)
                yield tokens

    return _rate(batches(), seconds)


def _rate(batches: Iterator[int], seconds: float) -> float:
    """Tokens/s over at least `seconds`, after a tenth of that to warm up."""
    start = time.perf_counter()
    while time.perf_counter() - start < seconds / 10:
        next(batches)
    start, tokens = time.perf_counter(), 0
    while (spent := time.perf_counter() - start) < seconds:
        tokens += next(batches)
    return tokens / spent


def anonymous_bytes() -> int:
    """What the process holds that is in no file."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith("RssAnon"))
    return int(line.split()[1]) * 1024


def measure_rate(root: Path, case: Case, seconds: float) -> dict[str, float]:
    """Tokens/s of the stream between two canaries, every shard touched before."""
    from trainer.stream import TokenStream

    import_bytes = anonymous_bytes()
    stream = TokenStream.open(
        str(root), sequence_length=LENGTH, global_batch_size=case.lanes, chunk=case.chunk
    )
    batches = stream.iterate(
        read_ahead=case.read_ahead, document_ids=case.ids, position_ids=case.ids
    )
    peak = 0
    per_batch = case.lanes * LENGTH
    # One pass over all windows' first lanes checks digests; what follows is the warm stream.
    for _ in range(4):
        next(batches)
    before = canary(root, seconds / 2)

    def counted() -> Iterator[int]:
        nonlocal peak
        every = max(1, 64 // case.lanes) * 16
        while True:
            for _ in range(every):
                next(batches)
                yield per_batch
            peak = max(peak, anonymous_bytes())

    rate = _rate(counted(), seconds)
    after = canary(root, seconds / 2)
    base = (before + after) / 2
    return {
        "tokens_per_second": rate,
        "canary_before": before,
        "canary_after": after,
        "ratio": rate / base,
        "anonymous_bytes": peak,
        "anonymous_bytes_of_imports": import_bytes,
    }


def measure_seek(root: Path, lanes: int, chunk: int) -> dict[str, float]:
    """Seconds to the first batch of steps far apart, shards checked before, windows not open."""
    from trainer.stream import TokenStream

    stream = TokenStream.open(
        str(root), sequence_length=LENGTH, global_batch_size=lanes, chunk=chunk
    )
    epoch = int(stream.num_steps_per_epoch) or 1
    for step in range(0, epoch, max(1, epoch // 16)):
        stream.batch(step)
    times = []
    for number in range(8):
        step = (number + 1) * 10_000_019 % (1000 * epoch)
        start = time.perf_counter()
        stream.batch(step)
        times.append(time.perf_counter() - start)
    return {"median_seconds": statistics.median(times), "worst_seconds": max(times)}


def measure_open(root: Path) -> dict[str, float]:
    """Seconds and memory to open a version."""
    from trainer.stream import TokenStream

    before = anonymous_bytes()
    times = []
    peak = 0
    done = threading.Event()

    def watch() -> None:
        nonlocal peak
        while not done.wait(0.002):
            peak = max(peak, anonymous_bytes())

    watcher = threading.Thread(target=watch)
    watcher.start()
    for _ in range(3):
        start = time.perf_counter()
        stream = TokenStream.open(str(root), global_batch_size=8)
        times.append(time.perf_counter() - start)
    done.set()
    watcher.join()
    return {
        "first_seconds": times[0],
        "seconds": min(times),
        "bytes": anonymous_bytes() - before,
        "peak_bytes": peak - before,
        "shards": sum(summary.num_shards for summary in stream.describe().values()),
    }


def in_fresh_process(function: Callable[..., Any], *args: Any) -> Any:
    """The function's result, from a process that has done nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(function, args)


def versions() -> dict[str, str]:
    """What it ran with."""
    import torch

    return {
        "python": platform.python_version(),
        "numpy": np.__version__,
        "pyarrow": pa.__version__,
        "torch": torch.__version__,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--records", type=int, default=1_000_000)
    parser.add_argument("--shards", type=int, default=100_000, help="of the wide catalog")
    parser.add_argument("--seconds", type=float, default=5.0, help="a measurement")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--folder", help="where to put the corpus; a temporary folder by default")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        report = measure_all(Path(folder), options)
    print(json.dumps(report))


def measure_all(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Every measurement, printed as it comes."""
    corpus, wide = folder / "corpus", folder / "wide"
    in_fresh_process(write_corpus, corpus, options.records)
    num_tokens = options.records * (MEAN_IMAGE_WORDS + MEAN_TEXT_IDS + 4)
    in_fresh_process(write_canary, corpus, num_tokens)
    rates: dict[str, Any] = {}
    print(
        f"{'case':44} {'M tok/s':>8} {'canary':>8} {'ratio':>7} {'target':>7} {'anon MB':>8} "
        "(of which imports)"
    )
    for case in CASES:
        runs = [
            in_fresh_process(measure_rate, corpus, case, options.seconds)
            for _ in range(options.repeats)
        ]
        middle = sorted(runs, key=lambda run: run["ratio"])[len(runs) // 2]
        spread = [round(run["ratio"], 4) for run in runs]
        rates[case.name] = {**middle, "ratios": spread, "target": case.target}
        base = (middle["canary_before"] + middle["canary_after"]) / 2
        print(
            f"{case.name:44} {middle['tokens_per_second'] / 1e6:8.1f} {base / 1e6:8.0f} "
            f"{middle['ratio']:7.1%} {case.target:7.0%} {middle['anonymous_bytes'] / 1e6:8.0f} "
            f"({middle['anonymous_bytes_of_imports'] / 1e6:.0f})"
        )
    seeks = {}
    for lanes, chunk, target in ((8, 64, 0.05), (256, 32, 0.5)):
        seeks[str(lanes)] = found = in_fresh_process(measure_seek, corpus, lanes, chunk)
        print(
            f"seek, {lanes} lanes x {chunk}: median {found['median_seconds'] * 1e3:.1f} ms, "
            f"worst {found['worst_seconds'] * 1e3:.1f} ms (target {target * 1e3:.0f} ms)"
        )
    in_fresh_process(write_wide_catalog, wide, options.shards)
    opened = in_fresh_process(measure_open, wide)
    print(
        f"open {opened['shards']} shards: first {opened['first_seconds']:.2f} s, then "
        f"{opened['seconds']:.2f} s, {opened['bytes'] / 1e6:.0f} MB, at most "
        f"{opened['peak_bytes'] / 1e6:.0f} MB while it reads (target 1 s, 200 MB)"
    )
    settings = {"records": options.records, "seconds": options.seconds, "length": LENGTH}
    return {
        "rates": rates,
        "seeks": seeks,
        "open": opened,
        "versions": versions(),
        "settings": settings,
    }


if __name__ == "__main__":
    main()
