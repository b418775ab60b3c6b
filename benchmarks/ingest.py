"""How fast are pairs ingested, with every guard on, beside img2dataset without them?

A local HTTP server in a process of its own serves pictures under 32 loopback addresses (hosts), so
that a cap per host is what it is in the wild. End to end, start-up included: `pixelese apply
--until pairs` against img2dataset's own `download()`, the same list, in turns. Warm: one worker of
ours against img2dataset's bare `Downloader` with its resizer and tar writer, second shard timed.
Both store JPEGs of at most 384 pixels at quality 92. Memory is the sum over a run's processes of
what is theirs alone and their share of the rest. Prints a table, then one JSON line.

    python benchmarks/ingest.py [--photos TARS...] [--counts 2000 10000] [--repeats 3]
"""

import argparse
import asyncio
import io
import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

ROOT = Path(__file__).parents[1]
HOSTS = [f"127.0.0.{number}" for number in range(2, 34)]
WORKERS = 2
THREADS = 32
ROWS_PER_SHARD = 1000
MAX_SIDE, QUALITY = 384, 92
WARM_ROWS = 2000
CAPTION = "a picture of something"


def drawn_pictures(count: int) -> list[bytes]:
    """Scenes of the demo, as JPEGs of about 20 kB."""
    from jobs.demo.scenes import draw_scene

    found = []
    for number in range(count):
        sink = io.BytesIO()
        draw_scene(number).image().resize((448, 448)).save(sink, "JPEG", quality=90)
        found.append(sink.getvalue())
    return found


def read_photos(tars: Sequence[Path]) -> list[bytes]:
    """The pictures of WebDataset tars."""
    sys.path.insert(0, str(ROOT))
    from benchmarks.photo_server import read_pictures

    return [picture.read() for picture in read_pictures(tars)]


async def _answer(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, pictures: list[bytes]
) -> None:
    try:
        while True:
            head = await reader.readuntil(b"\r\n\r\n")
            number = int(head.split(b" ", 2)[1].strip(b"/").partition(b".")[0])
            body = pictures[number % len(pictures)]
            keeps = b"connection: close" not in head.lower() and b"HTTP/1.1" in head
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\nContent-Length: %d\r\n%s\r\n"
                % (len(body), b"" if keeps else b"Connection: close\r\n")
            )
            writer.write(body)
            await writer.drain()
            if not keeps:
                break
    except (asyncio.IncompleteReadError, ConnectionError):
        pass  # the client is through
    finally:
        writer.close()


def serve(pictures: list[bytes], ready: "multiprocessing.connection.Connection") -> None:
    """Serves for ever under all HOSTS, on one port."""

    async def run() -> None:
        first = await asyncio.start_server(
            lambda r, w: _answer(r, w, pictures), HOSTS[0], 0, backlog=512
        )
        port = first.sockets[0].getsockname()[1]
        for host in HOSTS[1:]:
            await asyncio.start_server(
                lambda r, w: _answer(r, w, pictures), host, port, backlog=512
            )
        ready.send(port)
        await asyncio.Event().wait()

    asyncio.run(run())


def write_list(path: Path, port: int, count: int, *, start: int = 0) -> None:
    """A list of so many URLs, over all hosts."""
    urls = [
        f"http://{HOSTS[number % len(HOSTS)]}:{port}/{number}.jpg"
        for number in range(start, start + count)
    ]
    pq.write_table(pa.table({"url": urls, "caption": [CAPTION] * count}), path)


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement."""

    seconds: float
    num_images: int
    peak_bytes: int

    @property
    def rate(self) -> float:
        return self.num_images / self.seconds


class Memory:
    """The peak of a process tree's memory, looked at twice a second."""

    def __init__(self, pid: int) -> None:
        self.peak_bytes = 0
        self._pid = pid
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()

    def stop(self) -> int:
        self._stop.set()
        self._thread.join()
        return self.peak_bytes

    def _watch(self) -> None:
        while not self._stop.wait(0.5):
            self.peak_bytes = max(self.peak_bytes, _tree_bytes(self._pid))


def _tree_bytes(root: int) -> int:
    parents: dict[int, int] = {}
    for folder in Path("/proc").iterdir():
        if folder.name.isdigit():
            try:
                stat = (folder / "stat").read_text()
            except OSError:  # it has ended
                continue
            parents[int(folder.name)] = int(stat.rpartition(")")[2].split()[1])
    tree = {root}
    while grown := {pid for pid, parent in parents.items() if parent in tree} - tree:
        tree |= grown
    return sum(map(_own_bytes, tree))


def _own_bytes(pid: int) -> int:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))


def timed(command: Sequence[str]) -> tuple[float, int]:
    """Seconds and peak bytes of a command that must succeed."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)}
    started = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, env=environment, stdout=output, stderr=output)
        memory = Memory(process.pid)
        status = process.wait()
        seconds = time.monotonic() - started
        peak_bytes = memory.stop()
        if status != 0:
            output.seek(0)
            raise RuntimeError(f"{command[:4]} failed:\n{output.read().decode()[-3000:]}")
    return seconds, peak_bytes


def run_pixelese(folder: Path, port: int, count: int) -> Run:
    """`pixelese apply --until pairs` of a new corpus."""
    corpus = folder / "corpus"
    corpus.mkdir()
    write_list(corpus / "list.parquet", port, count)
    declaration = {
        "sources": [
            {"name": "web", "urls": "list.parquet", "columns": {"url": "url", "caption": "caption"}}
        ],
        "fetch": {"rows_per_shard": ROWS_PER_SHARD, "num_threads": THREADS},
        "images": {"max_side": MAX_SIDE, "quality": QUALITY},
    }
    (corpus / "corpus.yaml").write_text(yaml.safe_dump(declaration))
    arguments = ["apply", str(corpus), "--until", "pairs", "--allow-private-addresses"]
    workers = ["--workers", str(WORKERS)]
    seconds, peak = timed([sys.executable, "-m", "jobs.cli", *arguments, *workers])
    return Run(seconds, _stored(corpus / "pairs"), peak)


IMG2DATASET = """
import sys
from img2dataset import download
if __name__ == "__main__":
    download(
        url_list=sys.argv[1], output_folder=sys.argv[2], input_format="parquet", url_col="url",
        caption_col="caption", output_format="webdataset", processes_count={workers},
        thread_count={threads}, number_sample_per_shard={rows}, image_size={side},
        resize_mode="keep_ratio_largest", resize_only_if_bigger=True, encode_quality={quality},
        enable_wandb=False,
    )
"""


def run_img2dataset(folder: Path, port: int, count: int) -> Run:
    """img2dataset's own `download()`, with as many processes and threads."""
    write_list(folder / "list.parquet", port, count)
    script = folder / "download.py"
    script.write_text(
        IMG2DATASET.format(
            workers=WORKERS, threads=THREADS, rows=ROWS_PER_SHARD, side=MAX_SIDE, quality=QUALITY
        )
    )
    output = folder / "output"
    seconds, peak = timed([sys.executable, str(script), str(folder / "list.parquet"), str(output)])
    return Run(seconds, _stored(output), peak)


def _stored(folder: Path) -> int:
    """Images in the tars of a folder."""
    import tarfile

    count = 0
    for path in folder.rglob("*.tar"):
        with tarfile.open(path) as tar:
            count += sum(member.name.endswith(".jpg") for member in tar)
    return count


def warm_pixelese(folder: Path, port: int) -> None:
    """Prints the images a second of a fetch worker's second shard."""
    from jobs.stages import FetchStage
    from pipeline.intake import scan_source, take_in
    from pipeline.lineage import want_pairs
    from pipeline.plan import Work
    from schemas.declaration import load_declaration
    from schemas.storage import Store

    write_list(folder / "list.parquet", port, 2 * WARM_ROWS)
    declared = {
        "sources": [
            {"name": "web", "urls": "list.parquet", "columns": {"url": "url", "caption": "caption"}}
        ],
        "fetch": {
            "rows_per_shard": WARM_ROWS,
            "num_threads": THREADS,
            "allow_private_addresses": True,
        },
        "images": {"max_side": MAX_SIDE, "quality": QUALITY},
    }
    (folder / "corpus.yaml").write_text(yaml.safe_dump(declared))
    store = Store(folder)
    declaration, _ = load_declaration(store)
    source = declaration.sources[0]
    shards = take_in(
        store,
        source,
        scan_source(source, store),
        fetch=declaration.fetch,
        known=[],
        next_ordinal=0,
    )
    work = FetchStage(store=store, declaration=declaration).open()
    for row in shards:
        started = time.monotonic()
        (made,) = work(Work(wanted=want_pairs(row), made_from=row, reason="new"))
        seconds = time.monotonic() - started
        assert made.num_records == WARM_ROWS, made.states
    print(WARM_ROWS / seconds)


def warm_downloader(folder: Path, port: int) -> None:
    """Prints the images a second of a `Downloader`'s second shard."""
    from img2dataset.downloader import Downloader
    from img2dataset.resizer import Resizer
    from img2dataset.writer import WebDatasetSampleWriter

    output = folder / "output"
    output.mkdir()
    downloader = Downloader(
        sample_writer_class=WebDatasetSampleWriter,
        resizer=Resizer(
            image_size=MAX_SIDE,
            resize_mode="keep_ratio_largest",
            resize_only_if_bigger=True,
            encode_quality=QUALITY,
        ),
        thread_count=THREADS,
        save_caption=True,
        extract_exif=False,
        output_folder=str(output),
        column_list=["url", "caption"],
        timeout=20,
        number_sample_per_shard=WARM_ROWS,
        oom_shard_count=5,
        compute_hash="sha256",
        verify_hash_type=None,
        encode_format="jpg",
        retries=2,
        user_agent_token=None,
        disallowed_header_directives=["noai", "noimageai", "noindex", "noimageindex"],
    )
    for shard in range(2):
        write_list(folder / "list.parquet", port, WARM_ROWS, start=shard * WARM_ROWS)
        table = pq.read_table(folder / "list.parquet")
        task = folder / f"{shard}.arrow"
        with pa.ipc.new_file(str(task), table.schema) as writer:
            writer.write_table(table)
        started = time.monotonic()
        downloader.download_shard((shard, str(task)))
        seconds = time.monotonic() - started
    assert _stored(output) == 2 * WARM_ROWS
    print(WARM_ROWS / seconds, file=sys.__stdout__)


WARM = {"pixelese": warm_pixelese, "downloader": warm_downloader}


def run_warm(name: str, port: int) -> float:
    """Images a second of one warm worker, in a process of its own."""
    environment = {**os.environ, "NO_ALBUMENTATIONS_UPDATE": "1", "PYTHONPATH": str(ROOT)}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, __file__, "--warm", name, "--port", str(port)]
        done = subprocess.run(
            [*command, "--folder", folder], env=environment, capture_output=True, text=True
        )
    if done.returncode != 0:
        raise RuntimeError(f"warm {name} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.split()[-1])


def measure(port: int, counts: Sequence[int], repeats: int) -> dict[str, object]:
    """All measurements, in turns."""
    results: dict[str, object] = {}
    runners = {"pixelese": run_pixelese, "img2dataset": run_img2dataset}
    for count in counts:
        found: dict[str, list[Run]] = {name: [] for name in runners}
        for _ in range(repeats):
            for name, run in runners.items():
                with tempfile.TemporaryDirectory() as folder:
                    made = run(Path(folder), port, count)
                if made.num_images != count:
                    raise RuntimeError(f"{name} stored {made.num_images} of {count} images")
                found[name].append(made)
        _tell(count, found)
        results[str(count)] = {
            name: [(run.seconds, run.peak_bytes) for run in runs] for name, runs in found.items()
        }
    warm = {name: [run_warm(name, port) for _ in range(repeats)] for name in WARM}
    ours, theirs = (statistics.median(warm[name]) for name in WARM)
    spread = {name: f"{min(rates):.0f} to {max(rates):.0f}" for name, rates in warm.items()}
    print(
        f"warm worker   {ours:.0f} images/s ({spread['pixelese']}), bare Downloader {theirs:.0f} "
        f"({spread['downloader']}): {ours / theirs:.2f} times"
    )
    return {**results, "warm": warm}


def _tell(count: int, found: dict[str, list[Run]]) -> None:
    for name, runs in found.items():
        seconds = sorted(run.seconds for run in runs)
        middle = statistics.median(seconds)
        peak = max(run.peak_bytes for run in runs)
        print(
            f"{count:>6} images  {name:12} {middle:6.1f} s ({seconds[0]:.1f} to {seconds[-1]:.1f}) "
            f"{count / middle:6.0f} images/s {peak / 1e6:6.0f} MB at most"
        )
    ratios = [
        theirs.seconds / ours.seconds
        for ours, theirs in zip(found["pixelese"], found["img2dataset"], strict=True)
    ]
    print(
        f"{count:>6} images  pixelese is {statistics.median(ratios):.2f} times as fast "
        f"({min(ratios):.2f} to {max(ratios):.2f})",
        flush=True,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--photos", type=Path, nargs="*", default=[], help="WebDataset tars")
    parser.add_argument("--counts", type=int, nargs="+", default=[2000, 10_000])
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--warm", choices=sorted(WARM), help=argparse.SUPPRESS)
    parser.add_argument("--port", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.warm:
        WARM[options.warm](options.folder, options.port)
        return
    pictures = read_photos(options.photos) if options.photos else drawn_pictures(400)
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    server = context.Process(target=serve, args=(pictures, theirs), daemon=True)
    server.start()
    results = measure(ours.recv(), options.counts, options.repeats)
    print(json.dumps(results))


if __name__ == "__main__":
    main()
