"""`pixelese`: the command line. It starts at once, as nothing heavy is imported here."""

import contextlib
import logging
import os
import sys
import traceback

import typer

from jobs.commands.apply import apply
from jobs.commands.demo import demo
from jobs.commands.diff import diff
from jobs.commands.explain import explain
from jobs.commands.export import export
from jobs.commands.gc import gc
from jobs.commands.init import init
from jobs.commands.inspect import inspect
from jobs.commands.plan import plan
from jobs.commands.remove import remove
from jobs.commands.repair import repair
from jobs.commands.report import report
from jobs.commands.rollback import rollback
from jobs.commands.sample import sample
from jobs.commands.size import size_corpus
from jobs.commands.tokenizer import tokenizer
from jobs.commands.train import train
from jobs.commands.verify import verify
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
app.command("size")(size_corpus)
app.command()(versions)
app.command()(diff)
app.command()(report)
app.command()(explain)
app.command()(rollback)
app.command()(remove)
app.command()(verify)
app.command()(repair)
app.command()(gc)
app.add_typer(tokenizer, name="tokenizer")
app.command()(export)
app.command()(train)
app.command()(sample)
app.command()(inspect)
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
    status = _run()
    with contextlib.suppress(BrokenPipeError):  # the reader of a pipe has seen enough
        sys.stdout.flush()
        sys.stderr.flush()
    # All work is done and closed. Python's own way out destroys Arrow's thread pools while their
    # threads may still be starting, which aborted one of some hundred short commands under load.
    os._exit(status)


def _run() -> int:
    """The exit status of the command line's command."""
    try:
        app()
    except SystemExit as error:
        return error.code if isinstance(error.code, int) else int(error.code is not None)
    except PixeleseError as error:
        print(f"pixelese: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        return 1
    except KeyboardInterrupt:
        print("pixelese: interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
