"""`pixelese tokenizer gate`: may something below a tokenizer change, or does that change words?"""

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from jobs.commands.tokenizer.images import CORPUS_HELP
from jobs.tables import console, table

if TYPE_CHECKING:
    from tokenizer.gate import Change, Comparison


def gate(
    artifact: str = typer.Argument(help="Folder or URL of the artifact that is to be used."),
    data: str = typer.Option(help=CORPUS_HELP),
    against: str | None = typer.Option(
        None, help="A golden set saved before, or an artifact that is encoded with here and now."
    ),
    save_golden: Path | None = typer.Option(
        None, help="Save the words of this artifact here, to compare against after a change."
    ),
    images: int = typer.Option(1000, min=1, help="At most so many images are used."),
    limit: float = typer.Option(0.001, min=0.0, max=1.0, help="Share of codes that may change."),
    device: str = typer.Option("cpu", help="cpu or cuda."),
    precision: str = typer.Option("float32", help="float32 or bfloat16."),
    batch_size: int = typer.Option(64, min=1, help="Images of an encoder batch."),
    output: Path | None = typer.Option(None, help="Also write what was found as JSON here."),
) -> None:
    """Encode a golden set again, and refuse (exit status 1) where too many codes change.

    Before torch, a driver or the kind of GPU changes: --save-golden FILE. After: --against FILE.
    """
    from pipeline.image_set import ImageSet
    from schemas.errors import DeclarationError
    from tokenizer.gate import compare
    from tokenizer.golden import find_images, make_golden, read_golden
    from tokenizer.golden import save_golden as save
    from tokenizer.tokenize import DynamicTokenizer, ExecutionConfig

    if against is None and save_golden is None:
        raise DeclarationError("nothing to do: give --against, --save-golden, or both")
    run: dict[str, Any] = {"device": device, "precision": precision, "batch_size": batch_size}
    try:
        ExecutionConfig(**run)
    except ValueError as error:
        raise DeclarationError(f"{error}") from error
    tokenizer = DynamicTokenizer.load(artifact, **run)
    source = ImageSet.open(data, limit=images)
    if against is not None and Path(against).is_file():
        before = read_golden(Path(against))
        chosen, keys = find_images(before, source, source.keys)
    else:
        before, chosen, keys = None, source[:], source.keys
        if against is not None:
            before = make_golden(DynamicTokenizer.load(against, **run), chosen, keys)
    now = make_golden(tokenizer, chosen, keys)
    if save_golden is not None:
        save(now, save_golden)
        print(f"wrote {save_golden}: the words of {len(keys):,} images")
    if before is None:
        return
    found = compare(before, now)
    accepted = found.codes.share <= limit
    _tell(found)
    if output is not None:
        value = dataclasses.asdict(found) | {
            "changed_share": found.codes.share,
            "limit": limit,
            "accepted": accepted,
        }
        output.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")
        print(f"wrote {output}")
    if not accepted:
        print(
            f"refused: {found.codes.share:.3%} of codes changed, at most {limit:.3%} may; keep the "
            "old environment, or declare another tokenizer and encode the corpus again"
        )
        raise typer.Exit(1)
    print(f"accepted: {found.codes.share:.3%} of codes changed, at most {limit:.3%} may")


def _tell(found: "Comparison") -> None:
    if not found.same_tokenizer:
        print("the two are different tokenizers: their fingerprints differ")
    counts = table("what", "changed", "of", "share", right=("changed", "of", "share"))
    for name, change in (
        ("keep decisions", found.keep_decisions),
        ("codes", found.codes),
        ("images", found.images),
    ):
        counts.add_row(name, *_row(change))
    console.print(counts)
    if found.environments:
        shown = table("environment", "before", "now")
        for name, (before, now) in found.environments.items():
            shown.add_row(name, before or "-", now or "-")
        console.print(shown)
    if found.worst:
        worst = table("worst image", "changed", "of", "share", right=("changed", "of", "share"))
        for image in found.worst:
            worst.add_row(image.key, *_row(image.codes))
        console.print(worst)


def _row(change: "Change") -> tuple[str, str, str]:
    return f"{change.changed:,}", f"{change.total:,}", f"{change.share:.3%}"
