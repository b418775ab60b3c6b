"""Where everything lies under the corpus root.

A name that can hold different bytes holds their digest, so that nothing is ever overwritten.
"""

import re

from schemas.errors import DeclarationError
from schemas.fingerprint import SHORT

DECLARATION = "corpus.yaml"
CATALOG = "catalog"
RUNS = "runs"


def shard_name(number: int) -> str:
    """Shards of a source are numbered in the order in which they came in."""
    return f"{number:06d}"


def intake_path(source: str, shard: str, content: str) -> str:
    return f"intake/{source}/{shard}-{content[:SHORT]}.parquet"


def pairs_path(source: str, shard: str, content: str) -> str:
    return f"pairs/{source}/{shard}-{content[:SHORT]}.tar"


def ledger_path(pairs: str) -> str:
    """The ledger that lies beside a pair shard."""
    return pairs.removesuffix(".tar") + ".parquet"


def signals_path(signal: str, source: str, shard: str, fingerprint: str) -> str:
    return f"signals/{signal}/{source}/{shard}-{fingerprint[:SHORT]}.parquet"


def relations_path(source: str, shard: str, fingerprint: str) -> str:
    return f"relations/{source}/{shard}-{fingerprint[:SHORT]}.parquet"


def selected_path(source: str, shard: str, fingerprint: str) -> str:
    return f"selected/{source}/{shard}-{fingerprint[:SHORT]}.parquet"


def tokens_path(source: str, shard: str, fingerprint: str) -> str:
    return f"tokens/{source}/{shard}-{fingerprint[:SHORT]}.arrow"


def version_path(number: int) -> str:
    return f"{CATALOG}/v{number:06d}.parquet"


def version_number(path: str) -> int | None:
    """The number in a catalog file's name, or None for another file."""
    match = re.fullmatch(rf"{CATALOG}/v(\d{{6,}})\.parquet", path)
    return int(match.group(1)) if match else None


def parse_reference(reference: str) -> tuple[str, int | None, str]:
    """Splits `CORPUS@v12:validation` into corpus URL, version (None: the newest) and split.

    Raises:
        DeclarationError: the part after `@` is not a version.
    """
    match = re.fullmatch(
        r"(?P<corpus>[^@].*?)(?:@(?P<version>[^@/]*?)(?::(?P<split>\w+))?)?", reference
    )
    if match is None:
        raise DeclarationError(f"{reference!r} names no corpus: write CORPUS@vN or CORPUS@vN:split")
    corpus, version, split = match["corpus"], match["version"], match["split"] or "train"
    if version is None:
        return corpus, None, split
    number = re.fullmatch(r"v(\d+)", version)
    if number is None:
        raise DeclarationError(
            f"{reference!r}: {version!r} is no version. Write CORPUS@vN, for example {corpus}@v1"
        )
    return corpus, int(number.group(1)), split
