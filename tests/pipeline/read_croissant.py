"""Reads a Croissant file with mlcroissant, and prints what it finds as JSON.

A program of its own, as that project brings warnings and log lines that our tests do not share.
"""

import json
import sys
from typing import Any

import mlcroissant


def main(path: str) -> None:
    dataset: Any = mlcroissant.Dataset(path)
    issues = dataset.metadata.ctx.issues
    rows = [
        {name.rpartition("/")[2]: _plain(value) for name, value in row.items()}
        for row in dataset.records("shards")
    ]
    print(
        json.dumps(
            {
                "name": dataset.metadata.name,
                "errors": sorted(issues.errors),
                "warnings": sorted(issues.warnings),
                "shards": rows,
            }
        )
    )


def _plain(value: Any) -> Any:
    return value.decode() if isinstance(value, bytes) else int(value)


if __name__ == "__main__":
    main(sys.argv[1])
