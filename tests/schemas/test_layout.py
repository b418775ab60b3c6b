"""Names hold the digests of what they name, and references are read as they are written."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas import layout
from schemas.errors import DeclarationError

DIGEST = "0123456789abcdef" * 4


@given(st.integers(1, 10**8))
def test_a_version_has_the_number_in_its_name(number: int) -> None:
    assert layout.version_number(layout.version_path(number)) == number


@pytest.mark.parametrize(
    "path",
    [
        "catalog/v12.parquet",
        "catalog/v000001.parquet.bak",
        "catalog/000001.parquet",
        "catalog/old/v000001.parquet",
        "other/v000001.parquet",
    ],
)
def test_other_files_are_no_versions(path: str) -> None:
    assert layout.version_number(path) is None


def test_names_are_those_of_the_specification() -> None:
    shard = layout.shard_name(12)
    assert layout.intake_path("web", shard, DIGEST) == (
        "intake/web/000012-0123456789abcdef.parquet"
    )
    pairs = layout.pairs_path("web", shard, DIGEST)
    assert pairs == "pairs/web/000012-0123456789abcdef.tar"
    assert layout.ledger_path(pairs) == "pairs/web/000012-0123456789abcdef.parquet"
    assert layout.signals_path("clip", "web", shard, DIGEST) == (
        "signals/clip/web/000012-0123456789abcdef.parquet"
    )
    made = {
        "relations": layout.relations_path("web", shard, DIGEST),
        "selected": layout.selected_path("web", shard, DIGEST),
    }
    for kind, path in made.items():
        assert path == f"{kind}/web/000012-0123456789abcdef.parquet"
    assert layout.tokens_path("web", shard, DIGEST) == "tokens/web/000012-0123456789abcdef.arrow"
    assert layout.version_path(12) == "catalog/v000012.parquet"
    hashes = layout.evaluation_path("coco-val", DIGEST, DIGEST[::-1])
    assert hashes == f"decontaminate/coco-val-0123456789abcdef-{DIGEST[::-1][:16]}.parquet"
    assert layout.parse_evaluation_path(hashes) == ("coco-val", DIGEST[:16], DIGEST[::-1][:16])
    assert layout.parse_evaluation_path("decontaminate/notes.txt") is None


def test_names_of_shards_are_told_from_strangers() -> None:
    shard = layout.shard_name(1_000_000)
    pairs = layout.pairs_path("web-2", shard, DIGEST)
    ours = [
        layout.intake_path("web-2", shard, DIGEST),
        pairs,
        layout.ledger_path(pairs),
        layout.signals_path("clip", "web-2", shard, DIGEST),
        layout.relations_path("web-2", shard, DIGEST),
        layout.selected_path("web-2", shard, DIGEST),
        layout.tokens_path("web-2", shard, DIGEST),
    ]
    assert all(layout.is_shard_path(path) for path in ours)
    assert not any(layout.is_shard_path(f"old/{path}") for path in ours)
    assert not any(layout.is_shard_path(f"{path}.bak") for path in ours)
    assert not layout.is_shard_path("tokens/web/README.md")
    assert not layout.is_shard_path("images/web/000001-0123456789abcdef.parquet")


def test_a_lease_has_its_number_in_its_name() -> None:
    assert layout.lease_path(7) == "lease/000007.json"
    assert layout.lease_number("lease/000007.json") == 7
    assert layout.lease_number("lease/notes.json") is None
    assert [layout.kept_declaration_path(3, copy) for copy in (0, 1)] == [
        "corpus.yaml.v3",
        "corpus.yaml.v3.1",
    ]


@pytest.mark.parametrize(("text", "number"), [("v3", 3), ("3", 3), ("v000012", 12)])
def test_versions_are_read(text: str, number: int) -> None:
    assert layout.parse_version(text) == number


@pytest.mark.parametrize("text", ["", "v", "newest", "-1", "v1.5", "1 "])
def test_what_is_no_version_is_told(text: str) -> None:
    with pytest.raises(DeclarationError, match="is no version: write v3, or 3"):
        layout.parse_version(text)


@pytest.mark.parametrize(
    ("reference", "parsed"),
    [
        ("corpus", ("corpus", None, "train")),
        ("/data/corpus@v12", ("/data/corpus", 12, "train")),
        ("s3://bucket/corpus@v000003:validation", ("s3://bucket/corpus", 3, "validation")),
        ("s3://user@host/corpus", ("s3://user@host/corpus", None, "train")),
        ("s3://user@host/corpus@v1", ("s3://user@host/corpus", 1, "train")),
        ("C:/corpus@v1:train", ("C:/corpus", 1, "train")),
        ("a@v1@v2", ("a@v1", 2, "train")),
    ],
)
def test_references_are_read(reference: str, parsed: tuple[str, int | None, str]) -> None:
    assert layout.parse_reference(reference) == parsed


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ("", "names no corpus"),
        ("@v1", "names no corpus"),
        ("corpus@", "'' is no version"),
        ("corpus@12", "'12' is no version. Write CORPUS@vN, for example corpus@v1"),
        ("corpus@latest:train", "'latest' is no version"),
        ("corpus@v1:", "'v1:' is no version"),
        ("corpus@v-1", "'v-1' is no version"),
    ],
)
def test_what_is_no_reference_is_told(reference: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        layout.parse_reference(reference)
