"""`pixelese rollback`: an old version's content as the newest version."""

from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from pipeline.rollback import Rollback


def rollback(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    version: str = typer.Argument(help="The version to go back to: v3, or 3."),
    note: str = typer.Option("", help="A line for people, kept with the version."),
    wait: float | None = typer.Option(
        None, min=0.0, metavar="SECONDS", help="Wait so long for another writer to finish."
    ),
) -> None:
    """Publish an old version's content as a new version, and make corpus.yaml what it was then."""
    from pipeline.lease import hold
    from pipeline.rollback import roll_back
    from schemas.catalog import Catalog
    from schemas.layout import parse_version
    from schemas.storage import Store

    store = Store(corpus)
    number = parse_version(version)
    Catalog(store).read(number, kinds=[])  # a misspelt corpus gets no lease
    with hold(store, wait_seconds=wait):
        _tell(corpus, roll_back(store, number, note=note))


def _tell(corpus: str, done: "Rollback") -> None:
    if done.nothing_to_do:
        print(f"nothing to do: the newest version has the content of v{done.of}")
        return
    if done.version is None:
        print(f"the newest version has the content of v{done.of} already; nothing was published")
    else:
        print(f"published v{done.version} with the content of v{done.of}")
    kept = done.kept_declaration
    print(
        f"corpus.yaml is that of v{done.of}"
        + (f"; the one that was there is kept as {kept}" if kept else "")
    )
    if done.num_removed:
        print(
            f"{done.num_removed:,} records of it were removed since and stay out. Run "
            f"`pixelese apply {corpus}`: it makes {done.num_selections:,} selections again"
        )
    elif not done.complete:
        print(f"v{done.of} was not complete: run `pixelese apply {corpus}` before training on it")
    if done.num_unfinished:
        print(
            f"{done.num_unfinished:,} unfinished runs are kept: the next apply uses what still fits"
        )
