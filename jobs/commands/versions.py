"""`pixelese versions`: what has been published."""

import typer
from rich.markup import escape

from jobs.tables import console, table

MAX_CHANGES = 3
"""Changes of a version that are told; `pixelese report` tells all."""


def versions(corpus: str = typer.Argument(help="Folder or URL of the corpus.")) -> None:
    """List the published versions, newest last, and what each changed."""
    from pipeline.history import read_history
    from schemas.declaration import load_declaration
    from schemas.storage import Store

    store = Store(corpus)
    load_declaration(store)
    # Token shards alone: of 100,000 shards, six of seven rows are of other kinds.
    found = read_history(store, kinds=["tokens"])
    if not found:
        print(f"{store.url} has no published version yet: run `pixelese apply {corpus}`")
        return
    counts = ("records", "images", "text ids", "image words", "shards")
    columns = ("version", "time", *counts, "encoded", "tokenizer", "complete", "changed", "note")
    shown = table(*columns, right=counts)
    for version in found:
        told = version.changes[:MAX_CHANGES]
        more = len(version.changes) - len(told)
        shown.add_row(
            f"v{version.number}",
            version.time.replace("+00:00", "Z"),
            f"{version.num_records:,}",
            f"{version.num_images:,}",
            f"{version.num_text_ids:,}",
            f"{version.num_image_words:,}",
            f"{version.num_token_shards:,}",
            version.encoded or "-",
            ", ".join(version.tokenizers) or "-",
            "yes" if version.complete else "no",
            escape("; ".join([*told, *([f"{more} more"] if more else [])])),
            escape(version.note),
        )
    console.print(shown)
