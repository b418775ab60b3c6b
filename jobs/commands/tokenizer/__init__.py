"""`pixelese tokenizer`: train and measure the visual tokenizer."""

import typer

from jobs.commands.tokenizer.evaluate import evaluate
from jobs.commands.tokenizer.gate import gate
from jobs.commands.tokenizer.import_lavit import import_lavit
from jobs.commands.tokenizer.train import train

tokenizer = typer.Typer(
    help="Train and measure the visual tokenizer.", no_args_is_help=True, rich_markup_mode=None
)
tokenizer.command()(train)
tokenizer.command("eval")(evaluate)
tokenizer.command()(gate)
tokenizer.command("import-lavit")(import_lavit)
