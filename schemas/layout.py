"""Where everything lies under the corpus root.

A name that can hold different bytes holds their digest, so that nothing is ever overwritten.
"""

import re

from schemas.errors import DeclarationError
from schemas.fingerprint import SHORT

DECLARATION = "corpus.yaml"
CATALOG = "catalog"
RUNS = "runs"
EVALUATION = "decontaminate"
LEASE = "lease"
PINS = "pins"
PURGES = "purges"


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


def evaluation_path(name: str, stamp: str, content: str) -> str:
    """The hashes of an evaluation set: `stamp` tells its files, `content` its hashes."""
    return f"{EVALUATION}/{name}-{stamp[:SHORT]}-{content[:SHORT]}.parquet"


def parse_evaluation_path(path: str) -> tuple[str, str, str] | None:
    """(name, stamp, content), both digests short, or None for another file."""
    match = re.fullmatch(rf"{EVALUATION}/([\w-]+)-([0-9a-f]{{16}})-([0-9a-f]{{16}})\.parquet", path)
    return (match[1], match[2], match[3]) if match else None


def version_path(number: int) -> str:
    return f"{CATALOG}/v{number:06d}.parquet"


def version_number(path: str) -> int | None:
    """The number in a catalog file's name, or None for another file."""
    match = re.fullmatch(rf"{CATALOG}/v(\d{{6,}})\.parquet", path)
    return int(match.group(1)) if match else None


def card_path(number: int) -> str:
    """The dataset card of a version."""
    return f"{CATALOG}/v{number:06d}.md"


def croissant_path(number: int) -> str:
    return f"{CATALOG}/v{number:06d}.croissant.json"


def card_number(path: str) -> int | None:
    """The version in the name of a card or Croissant file, or None for another file."""
    match = re.fullmatch(rf"{CATALOG}/v(\d{{6,}})\.(?:md|croissant\.json)", path)
    return int(match.group(1)) if match else None


def lease_path(number: int) -> str:
    return f"{LEASE}/{number:06d}.json"


def lease_number(path: str) -> int | None:
    """The number in a lease's name, or None for another file."""
    match = re.fullmatch(rf"{LEASE}/(\d{{6,}})\.json", path)
    return int(match.group(1)) if match else None


def purge_path(number: int) -> str:
    return f"{PURGES}/{number:06d}.json"


def purge_number(path: str) -> int | None:
    """The number in the name of a purge's journal, or None for another file."""
    match = re.fullmatch(rf"{PURGES}/(\d{{6,}})\.json", path)
    return int(match.group(1)) if match else None


def pin_path(name: str) -> str:
    return f"{PINS}/{name}.json"


def kept_declaration_path(number: int, copy: int) -> str:
    """Where a rollback keeps the corpus.yaml that it replaces; `copy` is 0 for the first."""
    return f"{DECLARATION}.v{number}" + (f".{copy}" if copy else "")


_SHARD_FILE = re.compile(
    r"(?:intake|pairs|signals/[\w-]+|relations|selected|tokens)/[\w-]+/\d{6,}-[0-9a-f]{16}"
    r"\.(?:parquet|tar|arrow)",
    re.ASCII,
)


def is_shard_path(path: str) -> bool:
    """Whether a name is one that this file gives to a shard or a ledger, and no other program's."""
    return _SHARD_FILE.fullmatch(path) is not None


def parse_version(text: str) -> int:
    """The number in `v3` or `3`.

    Raises:
        DeclarationError: it is no version.
    """
    match = re.fullmatch(r"v?(\d+)", text)
    if match is None:
        raise DeclarationError(f"{text!r} is no version: write v3, or 3")
    return int(match.group(1))


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
