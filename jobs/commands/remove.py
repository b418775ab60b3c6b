"""`pixelese remove`: take content out of a corpus, and keep it out."""

import json
import sys
from typing import TYPE_CHECKING

import typer

from jobs.tables import console, size, table

if TYPE_CHECKING:
    from jobs.removal import RemoveOptions, RemoveReport
    from pipeline.purge import Loss
    from pipeline.removal import Removal
    from pipeline.removal_list import ListKind
    from schemas.storage import Store

NUM_SHOWN = 20
"""Lines of the list that are shown one by one."""


def remove(
    corpus: str = typer.Argument(help="Folder or URL of the corpus."),
    keys: str | None = typer.Option(
        None, metavar="FILE", help="Remove records: a key or row_id a line; - for stdin."
    ),
    urls: str | None = typer.Option(
        None, metavar="FILE", help="Remove what lies at URLs, with all its captions."
    ),
    sha256: str | None = typer.Option(
        None, metavar="FILE", help="Remove images by their digest, as received or as stored."
    ),
    reason: str = typer.Option("", help="A line for people, kept with the list."),
    and_copies: bool = typer.Option(
        False, "--and-copies", help="Also the same pictures under other keys and URLs."
    ),
    dry_run: bool = typer.Option(False, "--dry-run", help="Say what would leave; change nothing."),
    no_apply: bool = typer.Option(
        False, "--no-apply", help="Only write the list; the next apply carries it out."
    ),
    purge: bool = typer.Option(
        False,
        "--purge",
        help="Also delete images, captions and URLs, and every version that names them.",
    ),
    yes: bool = typer.Option(False, "--yes", help="Delete without asking."),
    as_json: bool = typer.Option(False, "--json", help="Print what each line matched as JSON."),
    address: str | None = typer.Option(None, help="A running Ray cluster, as for `apply`."),
    workers: int | None = typer.Option(None, min=1, help="Workers a stage, as for `apply`."),
    wait: float | None = typer.Option(
        None, min=0.0, metavar="SECONDS", help="Wait so long for another writer to finish."
    ),
) -> None:
    """Take records, URLs or images out of the corpus, prove that they are gone, keep them out."""
    place, kind = _chosen(keys, urls, sha256)
    if purge and no_apply:
        raise typer.BadParameter("--purge needs a version without the content: leave --no-apply")
    if purge and not (yes or dry_run or _is_terminal(place)):
        raise typer.BadParameter(
            "--purge deletes for ever and asks before: run it on a terminal, or give --yes"
        )
    from jobs.removal import RemoveOptions, look_for, look_for_loss, remove_content
    from pipeline.removal_list import read_removal_list
    from schemas.declaration import load_declaration
    from schemas.storage import Store

    store = Store(corpus)
    load_declaration(store)
    options = RemoveOptions(
        reason=reason,
        with_copies=and_copies,
        apply=not no_apply,
        purge=purge,
        address=address,
        num_workers=workers,
        wait_seconds=wait,
    )
    removal = look_for(store, read_removal_list(place, kind), kind, options)
    if as_json:
        print(json.dumps(_as_json(removal), indent=2))
    else:
        _tell(removal, kind, and_copies=and_copies)
    if dry_run:
        if purge:
            _tell_loss(store, removal, look_for_loss(store, removal, options))
        _say("nothing was changed (--dry-run)", as_json)
        return

    def confirm(loss: "Loss") -> bool:
        _tell_loss(store, removal, loss)
        return yes or typer.confirm("Delete all of this for ever?", err=True)

    _tell_done(removal, remove_content(store, removal, options, confirm=confirm), options, as_json)


def _chosen(keys: str | None, urls: str | None, sha256: str | None) -> tuple[str, "ListKind"]:
    from pipeline.removal_list import ListKind

    given = {ListKind.KEYS: keys, ListKind.URLS: urls, ListKind.SHA256: sha256}
    chosen = [(place, kind) for kind, place in given.items() if place is not None]
    if len(chosen) != 1:
        raise typer.BadParameter("give one of --keys, --urls and --sha256")
    return chosen[0]


def _is_terminal(place: str) -> bool:
    """Whether somebody can be asked: the standard input is a terminal, and not the list."""
    from pipeline.removal_list import STDIN

    return place != STDIN and sys.stdin.isatty()


def _as_json(removal: "Removal") -> dict[str, object]:
    return {
        "lines": [
            {
                "line": match.line.number,
                "text": match.line.text,
                "rows": match.num_rows,
                "records": match.records,
            }
            for match in removal.matches
        ],
        "unknown": [line.text for line in removal.unknown],
        "records": removal.records,
        "kept_in_newest_version": removal.num_kept,
        "copies": removal.num_copies,
    }


def _tell(removal: "Removal", kind: "ListKind", *, and_copies: bool) -> None:
    from pipeline.removal_list import ListKind

    shown = table("line", kind.value, "records", "of", right=("line", "records"))
    known = [match for match in removal.matches if match.num_rows]
    for match in known[:NUM_SHOWN]:
        sources = ", ".join(f"{name} {count:,}" for name, count in match.records.items())
        count = sum(match.records.values())
        shown.add_row(str(match.line.number), match.line.text, f"{count:,}", sources or "-")
    if known:
        console.print(shown)
    if len(known) > NUM_SHOWN:
        print(f"and {len(known) - NUM_SHOWN:,} more lines; --json lists them all")
    if removal.unknown:
        fate = (
            "an unknown key cannot be kept out"
            if kind is ListKind.KEYS and any(line.is_key for line in removal.unknown)
            else "kept out all the same"
        )
        print(f"{len(removal.unknown):,} lines match nothing here ({fate}):")
        for line in removal.unknown[:NUM_SHOWN]:
            print(f"  line {line.number}: {line.text}")
        if len(removal.unknown) > NUM_SHOWN:
            print(f"  and {len(removal.unknown) - NUM_SHOWN:,} more")
    by_source = ", ".join(f"{name} {count:,}" for name, count in removal.records.items())
    print(
        f"{len(removal.matches):,} lines name {removal.num_records:,} records"
        + (f" ({by_source})" if by_source else "")
        + f"; the newest version keeps {removal.num_kept:,} of them"
    )
    if removal.num_copies:
        print(
            f"{removal.num_copies:,} other records have the same pictures: "
            + ("they go too" if and_copies else "they stay, unless --and-copies is given")
        )


def _tell_loss(store: "Store", removal: "Removal", loss: "Loss") -> None:
    import pyarrow.compute as pc

    from schemas.catalog import Catalog
    from schemas.pins import read_pins

    catalog = Catalog(store)
    pins = {pin.version: f"pinned as {pin.name} by {pin.by}" for pin in read_pins(store)}
    versions = table("version", "time", "records", "note", right=("records",))
    for number in loss.versions:
        version = catalog.read(number, kinds=["tokens"])
        count = pc.sum(version.table["num_records"]).as_py() or 0
        notes = [item for item in (version.metadata.get("note"), pins.get(number)) if item]
        versions.add_row(f"v{number}", version.time, f"{count:,}", "; ".join(notes))
    files = table("files", "number", "bytes", right=("number", "bytes"))
    for kind, (count, num_bytes) in loss.kinds.items():
        files.add_row(kind, f"{count:,}", size(num_bytes))
    print("will be lost, and cannot be had back by any command:")
    print(f"  {removal.num_records:,} records, with their images, captions and URLs")
    print(f"  {len(loss.versions):,} versions that name them: nobody can train on them any more")
    console.print(versions)
    print(f"  {len(loss.files):,} files that nothing else needs, {size(loss.num_bytes)}")
    console.print(files)
    print("copies outside the corpus (source lists, backups, caches, reports) are not touched")


def _tell_done(
    removal: "Removal", report: "RemoveReport", options: "RemoveOptions", as_json: bool
) -> None:
    if report.tombstones is None:
        _say("already removed: no list was written", as_json)
    else:
        _say(f"wrote {report.tombstones}", as_json)
    if report.version is None:
        why = "nothing is published yet" if options.apply else "--no-apply"
        _say(f"{why}: what is made from now on is free of it", as_json)
        return
    done = "removed, " if report.tombstones is not None or report.num_rewritten else ""
    _say(
        f"{removal.num_records:,} records {done}absent from all "
        f"{report.num_token_shards:,} shards of v{report.version}",
        as_json,
    )
    if not options.purge:
        return
    if report.is_purged:
        _say(
            f"purged: {report.num_rewritten:,} shards written anew, "
            f"{len(report.loss.versions):,} versions and {len(report.loss.files):,} files "
            f"deleted ({size(report.loss.num_bytes)})",
            as_json,
        )
    else:
        _say(
            "not purged: older versions still hold the content. Run the same command again to "
            "delete them",
            as_json,
        )


def _say(text: str, as_json: bool) -> None:
    """On the standard output, or beside it where that is JSON."""
    print(text, file=sys.stderr if as_json else sys.stdout)
