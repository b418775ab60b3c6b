"""`pixelese verify`: is every file of a version what was published?"""

import time
from collections.abc import Iterable
from typing import TYPE_CHECKING

import typer

from jobs.tables import console, size, table

if TYPE_CHECKING:
    from pipeline.file_check import Problem
    from pipeline.verify import Verdict
    from schemas.storage import Store


def verify(
    corpus: str = typer.Argument(help="CORPUS or CORPUS@vN; the newest version by default."),
    workers: int | None = typer.Option(None, min=1, help="Shards read at once; default one a CPU."),
) -> None:
    """Read every file of a version against its digest, and what the files say of each other."""
    from schemas.layout import parse_reference
    from schemas.storage import Store

    url, number, _ = parse_reference(corpus)
    started = time.monotonic()
    number, verdict = verify_with_bar(Store(url), number, num_threads=workers)
    seconds = time.monotonic() - started
    if verdict.problems:
        tell_problems(verdict.problems)
        num_files = len({problem.path for problem in verdict.problems})
        print(f"{num_files:,} of {verdict.num_files:,} files of v{number} are not whole")
        raise typer.Exit(1)
    print(
        f"all {verdict.num_files:,} files of v{number} are whole "
        f"({size(verdict.num_bytes)}, {seconds:.1f} s)"
    )


def verify_with_bar(
    store: "Store", number: int | None, *, num_threads: int | None
) -> tuple[int, "Verdict"]:
    """`pipeline.verify.verify_version`, with a bar."""
    from jobs.progress import stage_progress
    from pipeline.verify import verify_version

    with stage_progress("verify", 0, unit="files") as progress:
        return verify_version(
            store,
            number,
            num_threads=num_threads,
            advance=lambda done, total: progress.to(done, total=total),
        )


def tell_problems(problems: Iterable["Problem"]) -> None:
    """A table of all that is wrong."""
    shown = table("file", "what is wrong", "what to do")
    for problem in problems:
        shown.add_row(problem.path, problem.what, problem.remedy)
    console.print(shown)
