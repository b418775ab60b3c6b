"""The card and the Croissant file of each version, beside its catalog file.

Both are pure functions of the version, so nothing has to record their digests: whether one is whole
is found by making it again, and one that is lost is made again. They are written after the version
is committed; whoever is killed in between leaves that to the next apply. A version says in its
metadata that it has them, as those of earlier releases have none.
"""

from pipeline.croissant import croissant
from pipeline.dataset_card import dataset_card
from pipeline.file_check import Problem
from pipeline.version_facts import read_facts
from schemas.catalog import Version
from schemas.errors import PixeleseError
from schemas.layout import card_path, croissant_path
from schemas.storage import Store

CARD_FORMAT = "1"
"""Raised when the same version would give other text."""
METADATA = {"card": CARD_FORMAT}
"""What a version that gets a card says of itself."""
DEFAULT_NAME = "A Pixelese corpus"


def card_paths(number: int) -> tuple[str, str]:
    """The card and the Croissant file of a version."""
    return card_path(number), croissant_path(number)


def make_cards(store: Store, number: int) -> dict[str, bytes]:
    """Path -> what is to be there for a version. Raises as `read_facts`."""
    facts = read_facts(store, number)
    about = facts.declaration.about
    name = about.name or DEFAULT_NAME
    description = (about.description or _describe(facts.declaration.has_images)).strip()
    return {
        card_path(number): dataset_card(facts, name=name, description=description),
        croissant_path(number): croissant(facts, name=name, description=description),
    }


def write_cards(store: Store, number: int) -> None:
    """Writes the cards of a version.

    Raises:
        CorruptShardError, StorageError: the version cannot be read, or the cards not be written.
    """
    for path, data in make_cards(store, number).items():
        store.write(path, data)


def complete_cards(store: Store, version: Version) -> None:
    """Writes the cards of a version whose writer was killed before it did."""
    if has_cards(version) and not all(map(store.exists, card_paths(version.number))):
        write_cards(store, version.number)


def has_cards(version: Version) -> bool:
    """Whether cards of this release's format belong to a version."""
    return version.metadata.get("card") == CARD_FORMAT


def check_cards(store: Store, version: Version) -> tuple[int, list[Problem]]:
    """Reads the cards of a version: how many bytes they have, and what is wrong with them.

    Where the version itself cannot be read, its own problems tell.
    """
    if not has_cards(version):
        return 0, []
    try:
        wanted = make_cards(store, version.number)
    except PixeleseError:
        return 0, []
    num_bytes = 0
    problems = []
    for path, data in wanted.items():
        if not store.exists(path):
            problems.append(Problem(path=path, kind="card", what="is missing", is_missing=True))
            continue
        found = store.read(path)
        num_bytes += len(found)
        if found != data:
            problems.append(Problem(path=path, kind="card", what="does not tell this version"))
    return num_bytes, problems


def _describe(has_images: bool) -> str:
    what = "Image-text pairs and documents" if has_images else "Documents"
    return f"{what} as integers, ready to train language models on."
