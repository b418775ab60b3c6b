"""`pixelese`: the command line. It starts at once, as nothing heavy is imported here."""

import logging
import os
import sys

import typer

from jobs.commands.apply import apply
from jobs.commands.demo import demo
from jobs.commands.init import init
from jobs.commands.plan import plan
from jobs.commands.report import report
from jobs.commands.sample import sample
from jobs.commands.tokenizer import tokenizer
from jobs.commands.train import train
from jobs.commands.versions import versions
from schemas.errors import PixeleseError

app = typer.Typer(
    help="Pre-tokenized multimodal corpora: declared, regenerated and streamed as pure tokens.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command()(init)
app.command()(plan)
app.command()(apply)
app.command()(versions)
app.command()(report)
app.add_typer(tokenizer, name="tokenizer")
app.command()(train)
app.command()(sample)
app.command()(demo)


@app.callback()
def _common(
    verbose: bool = typer.Option(False, "--verbose", "-v", help="Log what happens to each shard."),
) -> None:
    level = logging.INFO if verbose else logging.WARNING
    logging.basicConfig(level=level, format="%(levelname)s %(name)s %(message)s")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def main() -> None:
    """Runs a command; a failure that a user can mend is one clear message and exit status 1."""
    try:
        app()
    except PixeleseError as error:
        print(f"pixelese: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("pixelese: interrupted; run the same command again to go on", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
