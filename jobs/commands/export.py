"""`pixelese export`: a version in the format of another loader."""

import os
from typing import TYPE_CHECKING

import typer

from jobs.tables import size

if TYPE_CHECKING:
    from trainer.export.export import Export


def export(
    corpus: str = typer.Argument(help="CORPUS, CORPUS@vN or CORPUS@vN:SPLIT."),
    format: str = typer.Option(help="megatron, mds or parquet."),
    output: str = typer.Option(help="A folder or URL that is not there yet."),
    split: str = typer.Option("train", help="train or validation."),
    seed: int = typer.Option(0, help="Of the order of documents, and of pairs' directions."),
    epoch: int = typer.Option(0, min=0, help="Which of the stream's epochs."),
    image_first: float = typer.Option(
        0.5, min=0.0, max=1.0, help="Share of pairs whose image comes before the text."
    ),
    window_shards: int = typer.Option(16, min=1, help="Shards shuffled together."),
    bos: bool = typer.Option(True, help="Begin documents with [BOS]."),
    places: bool | None = typer.Option(
        None, help="Keep place words; by default if the tokenizer was trained with positions."
    ),
    compression: str | None = typer.Option(
        None, help="none or zstd; by default zstd for parquet, none for mds."
    ),
    part_mib: int = typer.Option(512, min=1, help="Ids in one part, and so in one Parquet file."),
    workers: int | None = typer.Option(None, min=1, help="Processes; default one a CPU."),
) -> None:
    """Write the documents of a version, as the stream builds them, for another loader."""
    from typing import cast

    from jobs.progress import stage_progress
    from trainer.export.export import export_version
    from trainer.export.plan import ExportConfig, Format, plan_export

    config = ExportConfig(
        format=cast(Format, format),
        seed=seed,
        epoch=epoch,
        window_shards=window_shards,
        image_first=image_first,
        bos=bos,
        places=places,
        compression=compression,
        part_bytes=part_mib << 20,
    )
    plan = plan_export(corpus, config, split=split)
    with stage_progress("export", 0, unit="tokens") as progress:
        done = export_version(
            plan,
            output,
            num_workers=workers or len(os.sched_getaffinity(0)),
            advance=lambda written, total: progress.to(written, total=total),
        )
    _tell(done, output)


def _tell(done: "Export", output: str) -> None:
    manifest = done.manifest
    if done.was_there:
        print(f"{output} is there already: nothing to do")
    elif done.num_found:
        print(f"went on from {done.num_found:,} of {done.num_parts:,} parts of an earlier run")
    num_bytes = sum(item["bytes"] for item in manifest["files"])
    print(
        f"{manifest['num_documents']:,} documents of v{manifest['version']}:{manifest['split']}, "
        f"{manifest['num_tokens']:,} tokens, {size(num_bytes)} in {len(manifest['files']):,} files"
    )
    print(f"{output}/manifest.json tells ids, settings and digests")
