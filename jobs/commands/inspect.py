"""`pixelese inspect`: what a run sees at a step, and at which steps it sees a record."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from jobs.inspection import Found, FoundRecord, ShownRow, ShownStep

WIDTH = 100
MANY_SHARDS = 64
"""From so many on, reading says how far it is."""
MAX_LISTED = 40
"""Sightings of a record that are listed."""
DEFAULTS = {"sequence_length": 512, "global_batch_size": 32, "places": True}
"""Where `train` has others than the stream itself."""


def inspect(
    subject: str = typer.Argument(
        metavar="CORPUS@vN|CHECKPOINT",
        help="A version, or a training run's folder, or one step-N folder in it.",
    ),
    step: int | None = typer.Option(
        None, min=0, help="Show this step of the stream; of a checkpoint this update, from 0."
    ),
    find: str | None = typer.Option(
        None, metavar="KEY_OR_URL", help="Show at which steps this record is seen."
    ),
    rows: str | None = typer.Option(None, metavar="A:B", help="Rows A up to B - 1; default all."),
    steps: str | None = typer.Option(
        None,
        metavar="A:B",
        help="With --find: steps A up to B - 1; default one epoch, or what a checkpoint has read.",
    ),
    sequence_length: int | None = typer.Option(None, min=2, help="As for train: default 512."),
    batch_size: int | None = typer.Option(None, min=1, help="As for train: default 32."),
    seed: int | None = typer.Option(None, help="As for train: default 0."),
    image_first: float | None = typer.Option(
        None, min=0.0, max=1.0, help="As for train: default 0.5."
    ),
    places: bool | None = typer.Option(
        None, "--places/--no-places", help="As for train: default with."
    ),
    bos: bool | None = typer.Option(None, "--bos/--no-bos", help="As for train: default with."),
    weights: str | None = typer.Option(None, help="As for train: name=share,name=share."),
    as_json: bool = typer.Option(False, "--json", help="Print what was found as JSON."),
    output: Path | None = typer.Option(
        None, help="Also write a page, with the pictures behind the codes."
    ),
) -> None:
    """Show the records that a step trains on, or the steps that train on a record."""
    from jobs.inspection import find_record, open_subject, show_step
    from schemas.errors import DeclarationError

    if (step is None) == (find is None):
        raise DeclarationError("give exactly one of --step and --find")
    if find is None and steps is not None:
        raise DeclarationError("--steps goes with --find; of a step, --rows names some rows")
    if find is not None and (rows is not None or output is not None):
        raise DeclarationError("--rows and --output go with --step: --find shows no rows")
    wanted_rows, wanted_steps = _range("--rows", rows), _range("--steps", steps)
    settings = _settings(
        sequence_length=sequence_length,
        global_batch_size=batch_size,
        seed=seed,
        image_first=image_first,
        places=places,
        bos=bos,
        weights=weights,
    )
    opened = open_subject(subject, settings, defaults=DEFAULTS)
    if find is not None:
        found = find_record(opened, find, wanted_steps, watch=_progress)
        if as_json:
            _print_json(found.as_json())
        else:
            print_found(found)
    elif step is not None:
        shown = show_step(opened, step, wanted_rows, pictures=output is not None, watch=_progress)
        if as_json:
            _print_json(shown.as_json())
        else:
            print_step(shown)
        if output is not None:
            from jobs.inspection_page import write_inspection_page

            typer.echo(f"wrote {write_inspection_page(output, shown)}", err=as_json)


def _range(option: str, text: str | None) -> range | None:
    from schemas.errors import DeclarationError
    from trainer.step_ranges import StepRanges

    if text is None:
        return None
    try:
        ((start, stop),) = StepRanges.parse(text).ranges
    except ValueError as error:
        raise DeclarationError(
            f"{option} must be one range A:B with A < B, for example {option} 0:4; got {text!r}"
        ) from error
    return range(start, stop)


def _settings(*, weights: str | None, **given: Any) -> dict[str, Any]:
    """The settings that were given."""
    from schemas.errors import DeclarationError
    from trainer.run import parse_weights

    settings = {name: value for name, value in given.items() if value is not None}
    if weights is not None:
        try:
            settings["weights"] = parse_weights(weights)
        except ValueError as error:
            raise DeclarationError(f"{error}") from error
    return settings


@contextlib.contextmanager
def _progress(name: str, num_shards: int) -> Iterator[Callable[[int], None]]:
    """Says how far reading many shards is; few are done before it could be read."""
    from jobs.progress import stage_progress

    if num_shards < MANY_SHARDS:
        yield lambda count: None
        return
    with stage_progress(name, num_shards) as progress:
        yield progress.advance


def _print_json(value: dict[str, Any]) -> None:
    print(json.dumps(value, indent=2, ensure_ascii=False))


def print_step(shown: "ShownStep") -> None:
    """Prints a step for people, at most `WIDTH` columns wide."""
    from jobs.inspection_page import headings

    console = _console()
    console.print(f"step {shown.step:,} of the stream", style="bold")
    for line in headings(shown):
        console.print(line)
    for row in shown.rows:
        console.print()
        console.print(
            f"row {row.row}: {row.source}, epoch {row.epoch:,}, lane {row.lane:,}, sequence "
            f"{row.sequence:,}",
            style="bold",
        )
        console.print(_row_table(row, shown.sequence_length))


def _row_table(row: "ShownRow", sequence_length: int) -> "Table":
    from jobs.inspection_page import told_cut, told_order

    rows = []
    for place, stored in row.records:
        cut = told_cut(place, sequence_length)
        cells = (
            f"{max(place.start, 0)}..{min(place.stop, sequence_length)}",
            place.key,
            place.shard,
            told_order(place),
            f"{place.num_text_ids:,}",
            f"{place.num_image_words:,}",
            _plain(stored.caption) + (f"\n({cut})" if cut else ""),
        )
        rows.append(cells)
    return _table(("place", "key", "shard", "order", "text", "image", "caption"), rows)


def print_found(found: "Found") -> None:
    """Prints sightings for people, at most `WIDTH` columns wide."""
    console = _console()
    console.print(found.corpus)
    if found.checkpoint is not None:
        told = f", leaving out steps {found.skip_steps}" if found.skip_steps else ""
        console.print(f"{found.checkpoint}{told}")
    looked = "one epoch" if found.steps is None else f"steps {found.steps[0]:,}:{found.steps[1]:,}"
    for record in found.records:
        console.print()
        console.print(f"{record.key} in {record.source}/{record.shard}", style="bold")
        left_out = (
            f"; {record.num_left_out:,} more in steps that the run leaves out"
            if record.num_left_out
            else ""
        )
        console.print(f"seen {len(record.sightings):,} times in {looked}{left_out}")
        if record.sightings:
            console.print(_sightings_table(found, record))
        if len(record.sightings) > MAX_LISTED:
            console.print(f"and {len(record.sightings) - MAX_LISTED:,} more; --json has them all")


def _sightings_table(found: "Found", record: "FoundRecord") -> "Table":
    from jobs.inspection_page import told_cut, told_order

    of_run = found.checkpoint is not None
    rows = []
    for item in record.sightings[:MAX_LISTED]:
        place = item.place
        cells = (
            f"{item.step:,}",
            *([f"{found.update(item.step):,}"] if of_run else []),
            f"{item.row}",
            f"{item.epoch:,}",
            f"{place.lane:,}",
            f"{max(place.start, 0)}..{min(place.stop, found.sequence_length)}",
            told_order(place),
            told_cut(place, found.sequence_length),
        )
        rows.append(cells)
    updates = ["update"] if of_run else []
    return _table(("step", *updates, "row", "epoch", "lane", "place", "order", ""), rows)


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> "Table":
    """A plain table of which only the last column is cut, to what is left of the line."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 1))
    numbers = ("step", "update", "row", "epoch", "lane", "text", "image")
    left = _console().width
    for column, *cells in zip(columns[:-1], *(row[:-1] for row in rows), strict=True):
        width = max(map(len, (column, *cells)))
        left -= width + 2
        table.add_column(
            column,
            justify="right" if column in numbers else "left",
            no_wrap=True,
            min_width=width,
        )
    table.add_column(columns[-1], overflow="ellipsis", no_wrap=True, max_width=max(left, 1))
    for row in rows:
        table.add_row(*row)
    return table


def _plain(text: str) -> str:
    """A text on one line, that cannot move the cursor."""
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode("ascii")
        for letter in text[:WIDTH]
    )


def _console() -> "Console":
    from rich.console import Console

    width = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    return Console(width=width, highlight=False, markup=False, emoji=False)
