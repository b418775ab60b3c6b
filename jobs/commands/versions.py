"""`pixelese versions`: what has been published."""

import typer

from jobs.tables import console, table

SUMMED = ("num_records", "num_images", "num_text_ids", "num_codes", "num_places")


def versions(corpus: str = typer.Argument(help="Folder or URL of the corpus.")) -> None:
    """List the published versions, newest last."""
    import pyarrow.compute as pc

    from schemas.catalog import Catalog
    from schemas.declaration import load_declaration
    from schemas.storage import Store

    store = Store(corpus)
    load_declaration(store)
    catalog = Catalog(store)
    numbers = catalog.numbers()
    if not numbers:
        print(f"{store.url} has no published version yet: run `pixelese apply {corpus}`")
        return
    counts = ("records", "images", "text ids", "image words", "shards")
    shown = table("version", "time", *counts, "tokenizer", "complete", "note", right=counts)
    for number in numbers:
        version = catalog.read(number, kinds=["tokens"], columns=["parts", *SUMMED])
        tokens = version.select("tokens")
        total = {name: pc.sum(tokens[name]).as_py() or 0 for name in SUMMED}
        shown.add_row(
            f"v{number}",
            version.time.replace("+00:00", "Z"),
            f"{total['num_records']:,}",
            f"{total['num_images']:,}",
            f"{total['num_text_ids']:,}",
            f"{total['num_codes'] + total['num_places']:,}",
            f"{len(tokens):,}",
            ", ".join(_tokenizers(tokens["parts"].unique().to_pylist())) or "-",
            "yes" if version.complete else "no",
            version.metadata.get("note", ""),
        )
    console.print(shown)


def _tokenizers(parts: list[str]) -> list[str]:
    """Short fingerprints of the image tokenizers behind some token shards."""
    import json

    found = {json.loads(item).get("image_tokenizer", "") for item in parts}
    return sorted(item[:8] for item in found if item)
