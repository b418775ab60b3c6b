"""`pixelese explain`: one row from its line in a list to its place in a token shard."""

import contextlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from pipeline.token_place import TokenPlace
    from pipeline.trace import Explanation, Member, RowTrace, Verdict

WIDTH = 100
MANY_SHARDS = 256
"""From so many on, the search says how far it is."""
MAX_LISTED = 40
"""Rows of several keys that are listed."""


def explain(
    corpus: str = typer.Argument(help="CORPUS or CORPUS@vN."),
    key: str = typer.Argument(
        metavar="KEY_OR_URL",
        help="A key, its first 8 characters or more, a URL, or ARCHIVE#MEMBER.",
    ),
    as_json: bool = typer.Option(False, "--json", help="Print what was found as JSON."),
) -> None:
    """Follow one row from its line in a list to its tokens, with every verdict on the way."""
    from pipeline.explain import explain_row
    from schemas.catalog import Catalog
    from schemas.layout import parse_reference
    from schemas.storage import Store

    url, number, _ = parse_reference(corpus)
    store = Store(url)
    version = Catalog(store).read(number)
    found = explain_row(store, version, key, watch=_progress)
    if as_json:
        print(json.dumps(found.as_json(), indent=2, ensure_ascii=False))
    else:
        print_explanation(found, url)


@contextlib.contextmanager
def _progress(name: str, num_shards: int) -> Iterator[Callable[[int], None]]:
    """Says how far a search over many shards is; few are done before it could be read."""
    from jobs.progress import stage_progress

    if num_shards < MANY_SHARDS:
        yield lambda count: None
        return
    with stage_progress(f"search {name}", num_shards) as progress:
        yield progress.advance


def print_explanation(found: "Explanation", corpus: str) -> None:
    """Prints an explanation for people, at most `WIDTH` columns wide."""
    from rich.console import Console

    width = min(WIDTH, shutil.get_terminal_size().columns) if sys.stdout.isatty() else WIDTH
    console = Console(width=width, highlight=False, markup=False, emoji=False)
    read = f"{found.num_read:,} of {found.num_shards:,} intake shards read"
    if len(found.keys) > 1:
        _print_several(console, found, read)
        return
    console.print(f"key {found.keys[0]} in v{found.version} ({read})", style="bold")
    for trace in found.rows:
        _print_trace(console, trace, corpus)


def _print_several(console: "Console", found: "Explanation", read: str) -> None:
    table = _grid(3)
    for trace in found.rows[:MAX_LISTED]:
        values = trace.intake
        told = f"{_text(values['url'])}\n{_text(values['caption'])}"
        table.add_row(values["key"], trace.state or "pending", told)
    console.print(
        f"{found.query} names {len(found.keys):,} keys in v{found.version} ({read}); give one of "
        "them:",
        style="bold",
    )
    console.print(table)
    if len(found.rows) > MAX_LISTED:
        console.print(f"and {len(found.rows) - MAX_LISTED:,} rows more; --json has them all")


def _print_trace(console: "Console", trace: "RowTrace", corpus: str) -> None:
    console.print()
    again = f", generation {trace.generation}" if trace.generation else ""
    console.print(f"{trace.source}/{trace.shard}, row {trace.row}{again}", style="bold")
    sections = (
        ("input", _input(trace)),
        ("fetch", _ledger(trace)),
        ("signals", _signals(trace)),
        ("relations", _relation(trace)),
        ("selection", _selection(trace)),
        ("tokens", _tokens(trace.tokens)),
    )
    table = _grid(3)
    for title, rows in sections:
        for number, (name, value) in enumerate(rows):
            table.add_row("" if number else title, name, value)
    console.print(table)
    console.print(f"=> {_text(trace.why)}", style="bold")
    if trace.remedy:
        console.print(f"   to do: {trace.remedy}{_replay(trace, corpus)}")


def _replay(trace: "RowTrace", corpus: str) -> str:
    if trace.replay is None:
        return ""
    return f": pixelese apply {corpus} --retry {trace.replay}"


def _grid(num_columns: int) -> "Table":
    from rich.table import Table

    table = Table.grid(padding=(0, 2))
    for number in range(num_columns):
        table.add_column(overflow="fold", no_wrap=number < num_columns - 1)
    return table


def _input(trace: "RowTrace") -> list[tuple[str, str]]:
    values = trace.intake
    rows = [
        ("source", f"{trace.kind}: {trace.location}"),
        ("shard", trace.intake_path),
        ("url", _text(values["url"])),
        ("caption", _text(values["caption"])),
    ]
    if values["flags"]:
        rows.append(("flags", ", ".join(values["flags"])))
    if values["size_bytes"] is not None:
        rows.append(("place", f"{values['size_bytes']:,} bytes from byte {values['offset']:,}"))
    if values.get("expected_sha256"):
        rows.append(("expected", f"sha256 {values['expected_sha256']}"))
    if values["state"] is not None:
        rows.append(("state", _state(values)))
    elif values["reason"] is not None:  # of a replay: what its attempt before ended in
        rows.append(("replays", values["reason"]))
    return rows


def _state(values: dict[str, Any]) -> str:
    return str(values["state"]) + (f" ({values['reason']})" if values["reason"] else "")


def _ledger(trace: "RowTrace") -> list[tuple[str, str]]:
    values = trace.ledger
    if values is None:
        return []
    rows = [("state", _state(values))]
    if values["attempts"] is not None:
        status = f", last status {values['http_status']}" if values["http_status"] else ""
        rows.append(("attempts", f"{values['attempts']}{status}"))
    if values["original_width"] is not None:
        kind = " ".join(filter(None, (values["original_format"], values["original_mode"])))
        size = f"{values['original_width']:,} x {values['original_height']:,}"
        rows.append(("received", f"{size} {kind}".rstrip()))
    if values["sha256"] is not None:
        rows.append(("sha256", values["sha256"]))
    if values["width"] is not None:
        stored = f"{values['width']:,} x {values['height']:,}, {values['bytes']:,} bytes"
        rows.append(("stored", stored))
    if values["flags"]:
        rows.append(("flags", ", ".join(values["flags"])))
    rows.append(("ledger", str(trace.ledger_path)))
    if trace.pair_path is not None:
        rows.append(("pair", f"number {trace.pair} of {trace.pair_path}, {values['key']}.jpg"))
    return rows


def _signals(trace: "RowTrace") -> list[tuple[str, str]]:
    from pipeline.trace import told

    return [
        (group, ", ".join(f"{name} {told(name, value)}" for name, value in values.items()))
        for group, values in trace.signals.items()
    ]


def _relation(trace: "RowTrace") -> list[tuple[str, str]]:
    values = trace.relation
    if values is None:
        return []
    if values["is_leader"]:
        rows = [("cluster", "its own: it is the first of it")]
    else:
        by = values.get("relation") or "bytes"
        distance = values["distance"]
        how = f"{distance} {'bit' if distance == 1 else 'bits'} apart" if distance else f"same {by}"
        rows = [("cluster", f"{values['cluster']}, {how}")]
        rows += _member("leader", trace.leader)
    rows += _member("taken by", trace.taken_by)
    if values.get("contaminated_by"):
        rows.append(("evaluation", f"its picture is in {values['contaminated_by']}"))
    return rows


def _member(name: str, member: "Member | None") -> list[tuple[str, str]]:
    if member is None:
        return []
    return [(name, f"{member.key} in {member.source}/{member.shard}: {_text(member.url)}")]


def _selection(trace: "RowTrace") -> list[tuple[str, str]]:
    rows = [(verdict.step, _verdict(verdict)) for verdict in trace.verdicts]
    if trace.selected is not None:
        dropped_by = trace.selected["dropped_by"]
        split = trace.selected["split"]
        rows.append(("verdict", f"dropped by {dropped_by}" if dropped_by else f"kept, {split}"))
    return rows


def _verdict(verdict: "Verdict") -> str:
    from pipeline.trace import told_values

    words = {True: "passes", False: "fails", None: ""}
    alone, in_order = words[verdict.alone], verdict.in_order
    if in_order == "not reached":
        head = f"not reached{f', alone it {alone}' if alone else ''}"
    else:
        head = in_order or alone
    tail = "; ".join(filter(None, (told_values(verdict), verdict.detail)))
    return ": ".join(filter(None, (head, verdict.asks))) + (f" [{tail}]" if tail else "")


def _tokens(place: "TokenPlace | None") -> list[tuple[str, str]]:
    if place is None:
        return []
    num_words = place.num_codes + place.num_places
    batch = f"batch {place.batch}, row {place.row_in_batch} in it"
    return [
        ("shard", place.path),
        ("row", f"{place.row} of {place.num_rows:,} ({batch})"),
        (
            "text",
            f"{place.num_text_ids:,} ids{_from('id', place.text_offset, place.text_byte)}",
        ),
        (
            "image",
            f"{num_words:,} words ({place.num_codes:,} codes, {place.num_places:,} places)"
            f"{_from('word', place.image_offset, place.image_byte)}",
        ),
    ]


def _from(unit: str, offset: int, byte: int | None) -> str:
    return "" if byte is None else f" from {unit} {offset:,}, byte {byte:,}"


def _text(value: str | None) -> str:
    """Text from a list as it may be printed: without what would move a terminal's cursor."""
    if value is None:
        return "-"
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in value)
