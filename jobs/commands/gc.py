"""`pixelese gc`: delete what no kept version refers to."""

from typing import TYPE_CHECKING

import typer

from jobs.tables import console, size, table

if TYPE_CHECKING:
    from pipeline.garbage import Garbage
    from schemas.storage import Store


def gc(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    keep: int = typer.Option(
        3, min=1, help="How many of the newest complete versions stay; the newest always does."
    ),
    delete: bool = typer.Option(
        False, "--delete", help="Delete it. Without this, it is only said what would be."
    ),
    pairs: bool = typer.Option(
        False,
        "--pairs",
        help="Also give up intake and pair shards of no kept version: they may never be had again.",
    ),
    wait: float | None = typer.Option(
        None, min=0.0, metavar="SECONDS", help="Wait so long for another writer to finish."
    ),
    pin: str | None = typer.Option(
        None, metavar="VERSION", help="Keep this version until it is unpinned; deletes nothing."
    ),
    name: str = typer.Option("", help="What the pin is called; by default after the version."),
    unpin: str | None = typer.Option(None, metavar="NAME", help="Take this pin away."),
) -> None:
    """Say, or with --delete do, what no kept version, unfinished run or pin needs."""
    from schemas.declaration import load_declaration
    from schemas.storage import Store

    store = Store(corpus)
    load_declaration(store)
    if pin is not None or unpin is not None:
        _change_pins(store, pin, name, unpin)
    elif delete:
        _collect(store, keep=keep, pairs=pairs, wait=wait)
    else:
        from pipeline.garbage import find_garbage

        found = find_garbage(store, keep=keep, pairs=pairs)
        _tell(found)
        if found.num_files:
            print("nothing was deleted: the same command with --delete does it")


def _change_pins(store: "Store", version: str | None, name: str, unpinned: str | None) -> None:
    from pipeline.lease import user_name
    from schemas import pins
    from schemas.layout import parse_version

    if version is not None:
        number = parse_version(version)
        made = pins.pin(store, name or f"v{number}", version=number, by=user_name())
        print(f"v{number} stays until `pixelese gc {store.url} --unpin {made.name}`")
    if unpinned is not None:
        pins.unpin(store, unpinned)
        print(f"{unpinned} is no pin any more")


def _collect(store: "Store", *, keep: int, pairs: bool, wait: float | None) -> None:
    from jobs.progress import stage_progress
    from pipeline.garbage import collect_garbage
    from pipeline.lease import hold

    with (
        hold(store, wait_seconds=wait) as lease,
        stage_progress("gc", 0, unit="files") as progress,
    ):
        found = collect_garbage(
            store,
            lease,
            keep=keep,
            pairs=pairs,
            deleted=lambda done, total: progress.to(done, total=total),
        )
    _tell(found)
    num_bytes = sum(item.bytes for files in found.groups.values() for item in files)
    print(f"deleted {found.num_files:,} files, {size(num_bytes)}")


def _tell(found: "Garbage") -> None:
    print("kept: " + ", ".join(f"v{item.number} ({item.why})" for item in found.kept))
    if found.dropped:
        numbers = ", ".join(f"v{number}" for number in found.dropped)
        print(f"given up: {numbers}; nobody can train on them or go back to them any more")
    if not found.num_files:
        print("there is nothing to delete")
    else:
        shown = table("what", "files", "bytes", right=("files", "bytes"))
        for what, files in found.groups.items():
            num_bytes = sum(item.bytes for item in files)
            shown.add_row(what, f"{len(files):,}", size(num_bytes))
        console.print(shown)
        for item in found.temporary:
            print(f"left by a killed writer: {item.name} ({size(item.bytes)})")
    if found.kept_back:
        num_bytes = sum(item.bytes for item in found.kept_back)
        print(
            f"kept back: {len(found.kept_back):,} intake and pair files of no kept version, "
            f"{size(num_bytes)}. What the web gave may never be had again; --pairs gives them up"
        )
    if found.young:
        print(
            f"spared: {len(found.young):,} files of no version, which an unfinished apply may have "
            "written"
        )
