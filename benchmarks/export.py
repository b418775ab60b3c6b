"""How fast is an export, beside reading the same shards?

Generates a corpus (94 image words and 15 text ids a record on average) in a temporary folder and
exports it to each format, in one process by default. Before and after each, the same shards are
read and digested, which an export has to do as well. Rates are tokens a second of processor time
and of the clock. Prints a table, then one JSON line.

    python benchmarks/export.py [--records 500000] [--workers 1]
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks.stream import write_corpus
from schemas.fingerprint import file_sha256
from trainer.export.export import export_version
from trainer.export.plan import ExportConfig, ExportPlan, plan_export

CASES: dict[str, dict[str, Any]] = {
    "megatron": {"format": "megatron"},
    "mds": {"format": "mds"},
    "mds, zstd": {"format": "mds", "compression": "zstd"},
    "parquet, zstd": {"format": "parquet"},
    "parquet": {"format": "parquet", "compression": "none"},
}


def seconds_of(work: Callable[[], object]) -> tuple[float, float]:
    """Processor seconds, children's included, and seconds of the clock."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)

    def spent() -> float:
        usages = [resource.getrusage(kind) for kind in kinds]
        return sum(usage.ru_utime + usage.ru_stime for usage in usages)

    before, started = spent(), time.perf_counter()
    work()
    return spent() - before, time.perf_counter() - started


def digest_shards(plan: ExportPlan) -> None:
    """Reads every token shard and digests it."""
    for source in plan.sources:
        for path in source.paths.to_pylist():
            file_sha256(Path(source.store.url) / path)


def measure(corpus: str, output: Path, config: dict[str, Any], workers: int) -> dict[str, float]:
    """One case."""
    plan = plan_export(corpus, ExportConfig(**config))
    num_tokens = sum(part.num_tokens for part in plan.parts)
    reading = [seconds_of(lambda: digest_shards(plan))[0]]
    cpu, wall = seconds_of(lambda: export_version(plan, str(output), num_workers=workers))
    reading.append(seconds_of(lambda: digest_shards(plan))[0])
    written = sum(path.stat().st_size for path in output.rglob("*") if path.is_file())
    return {
        "mtokens_per_cpu_second": num_tokens / cpu / 1e6,
        "mtokens_per_second": num_tokens / wall / 1e6,
        "times_reading": cpu / (sum(reading) / 2),
        "bytes_per_token": written / num_tokens,
        "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=int, default=500_000)
    parser.add_argument("--workers", type=int, default=1)
    options = parser.parse_args()
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_corpus(root / "corpus", options.records)
        print(
            f"{'':16}{'M tok/cpu s':>12}{'M tok/s':>9}{'x reading':>11}{'B/token':>9}{'peak MB':>9}"
        )
        for number, (name, config) in enumerate(CASES.items()):
            found = measure(str(root / "corpus"), root / str(number), config, options.workers)
            results[name] = found
            rate, clock, times, size, peak = found.values()
            print(f"{name:16}{rate:12.1f}{clock:9.1f}{times:11.1f}{size:9.2f}{peak:9.0f}")
    print(json.dumps({"benchmark": "export", **vars(options), "results": results}))


if __name__ == "__main__":
    main()
