"""Runs the study, and makes its tables and pictures.

    python -m benchmarks.study run --folder FOLDER --photographs FOLDER
    python -m benchmarks.study speed --folder FOLDER
    python -m benchmarks.study report --folder FOLDER --output JSON --images FOLDER

`run` may be started in several processes at once; each takes what nobody else is at, on one thread.
What is recorded is not done again.
"""

import argparse
import dataclasses
import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.study.arms import Budget
from benchmarks.study.report import write_report
from benchmarks.study.study import Study, open_study

BUDGET_HELP = "of the budget (default: %(default)s)"


def main(arguments: Sequence[str] | None = None) -> None:
    """Runs the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study")
    commands = parser.add_subparsers(required=True)
    run = commands.add_parser("run", help="train and measure what is not done")
    run.add_argument("--photographs", type=Path, help="folder of tars; none: drawn scenes alone")
    run.add_argument("--seeds", type=int, default=3)
    for item in dataclasses.fields(Budget):
        flag = "--" + item.name.replace("_", "-")
        run.add_argument(flag, type=type(item.default), default=item.default, help=BUDGET_HELP)
    run.set_defaults(function=_run)
    speed = commands.add_parser("speed", help="time the arms' steps in turn")
    speed.add_argument("--rounds", type=int, default=3)
    speed.set_defaults(function=_time)
    report = commands.add_parser("report", help="print tables, write figures and pictures")
    report.add_argument("--output", type=Path, required=True, help="file of all figures")
    report.add_argument("--images", type=Path, required=True, help="folder of pictures")
    report.add_argument("--free-photographs", type=Path, help="folder of tars and an index.csv")
    report.set_defaults(function=_report)
    for command in (run, speed, report):
        command.add_argument("--folder", type=Path, required=True, help="of the study")
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(asctime)s %(message)s")
    logging.getLogger("benchmarks").setLevel(logging.INFO)
    torch.set_num_threads(1)
    options.function(options)


def _run(options: argparse.Namespace) -> None:
    names = [item.name for item in dataclasses.fields(Budget)]
    budget = Budget(**{name: getattr(options, name) for name in names})
    Study(options.folder, budget, options.photographs).run(range(options.seeds))


def _time(options: argparse.Namespace) -> None:
    open_study(options.folder).measure_speed(num_rounds=options.rounds)


def _report(options: argparse.Namespace) -> None:
    study = open_study(options.folder)
    print(
        write_report(
            study,
            output=options.output,
            images=options.images,
            photographs=options.free_photographs,
        )
    )


if __name__ == "__main__":
    main()
