"""Every file of a version verifies as it was published, and no change to one goes unseen."""

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.shard_files import ShardFiles, group_rows
from pipeline.shard_table import read_parquet, write_table
from pipeline.tombstones import Tombstones, add_tombstones
from pipeline.verify import Verdict, verify_row, verify_shard, verify_version
from schemas.catalog import Catalog, ShardRow
from schemas.errors import CatalogError, CorruptShardError, StorageError
from schemas.layout import ledger_path, version_path
from schemas.storage import Store
from tests.pipeline.corpora import cut_file, draw_pair, flip_byte, publish_documents, publish_pairs
from tests.pipeline.versions import Made, make_version

KINDS = ("pairs", "intake", "image", "caption", "relations", "train", "validation", "tokens")
FOLDERS = (
    *("intake", "pairs", "signals", "relations", "selected", "tokens"),
    *("catalog", "tombstones"),
)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A version that each test leaves as it was."""
    found = make_version(Store(tmp_path_factory.mktemp("corpus")))
    gone = Tombstones(images=frozenset({"a" * 64}), urls=frozenset({"b" * 64}))
    add_tombstones(found.store, gone, reason="a test", time="2026-01-01T00:00:00+00:00")
    return found


@pytest.fixture(scope="module")
def rows(made: Made) -> dict[str, ShardRow]:
    """A row of every kind."""
    first = "000000"
    found = {
        row.kind: row
        for kind in ("pairs", "intake", "relations")
        for row in made.rows(kind)
        if row.shard == first
    }
    found |= {row.signal: row for row in made.rows("signals") if row.shard == first}
    found |= {row.split: row for row in made.rows("selected") if row.shard == first}
    tokens = [row for row in made.rows("tokens") if row.shard == first and row.split == "train"]
    return {**found, "tokens": tokens[0]}


def files_of(store: Store) -> list[Path]:
    root = Path(store.url)
    return sorted(path for name in FOLDERS for path in (root / name).rglob("*") if path.is_file())


def named(store: Store) -> set[str]:
    """The files that a verification complains of."""
    return {problem.path for problem in verify_version(store, num_threads=2)[1].problems}


def test_a_version_is_whole_as_it_was_published(made: Made) -> None:
    told: list[tuple[int, int]] = []
    number, verdict = verify_version(
        made.store, num_threads=2, advance=lambda done, total: told.append((done, total))
    )
    files = files_of(made.store)
    assert verdict == Verdict(
        num_files=len(files), num_bytes=sum(path.stat().st_size for path in files), problems=()
    )
    assert number == made.number
    assert told[-1] == (len(files), len(files))
    assert {path.relative_to(made.store.url).parts[0] for path in files} == set(FOLDERS)


@given(st.data())
def test_one_flipped_bit_names_its_file_and_no_other(made: Made, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(files_of(made.store)), label="file")
    whole = path.read_bytes()
    damaged = bytearray(whole)
    damaged[data.draw(st.integers(0, len(whole) - 1), label="place")] ^= 1 << data.draw(
        st.integers(0, 7), label="bit"
    )
    path.write_bytes(damaged)
    try:
        assert named(made.store) == {path.relative_to(made.store.url).as_posix()}
    finally:
        path.write_bytes(whole)


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "cut": lambda data: data[:-1],
    "halved": lambda data: data[: len(data) // 2],
    "emptied": lambda data: b"",
    "grown": lambda data: data + b"\0",
    "deleted": lambda data: None,
}


@pytest.mark.parametrize(
    ("folder", "damage"),
    [
        (folder, damage)
        for folder in FOLDERS
        for damage in DAMAGES
        # A version or list that is not there is none of the corpus.
        if damage != "deleted" or folder not in ("catalog", "tombstones")
    ],
)
def test_a_cut_grown_or_missing_file_is_named(made: Made, folder: str, damage: str) -> None:
    rng = random.Random(f"{folder} {damage}")
    path = rng.choice(sorted((Path(made.store.url) / folder).rglob("*.*")))
    whole = path.read_bytes()
    changed = DAMAGES[damage](whole)
    path.unlink() if changed is None else path.write_bytes(changed)
    try:
        assert named(made.store) == {path.relative_to(made.store.url).as_posix()}
    finally:
        path.write_bytes(whole)


@pytest.mark.parametrize("folder", ["intake", "pairs", "signals", "selected", "tokens"])
def test_two_swapped_files_are_both_named(made: Made, folder: str) -> None:
    suffix = "*.tar" if folder == "pairs" else "*.*"
    one, two = sorted((Path(made.store.url) / folder).rglob(suffix))[:2]
    contents = one.read_bytes(), two.read_bytes()
    assert contents[0] != contents[1]
    one.write_bytes(contents[1])
    two.write_bytes(contents[0])
    try:
        root = made.store.url
        assert named(made.store) == {item.relative_to(root).as_posix() for item in (one, two)}
    finally:
        one.write_bytes(contents[0])
        two.write_bytes(contents[1])


def test_all_problems_are_listed(made: Made) -> None:
    # With the catalog's file damaged, nothing says what else there should be.
    paths = [path for path in files_of(made.store)[::4] if path.parent.name != "catalog"]
    whole = [path.read_bytes() for path in paths]
    for path in paths:
        flip_byte(path, 40)
    try:
        assert named(made.store) == {p.relative_to(made.store.url).as_posix() for p in paths}
    finally:
        for path, data in zip(paths, whole, strict=True):
            path.write_bytes(data)
    assert named(made.store) == set()


def test_a_remedy_is_told_for_every_kind(made: Made) -> None:
    remedies = {}
    for folder in FOLDERS:
        path = sorted((Path(made.store.url) / folder).rglob("*.*"))[-1]
        whole = path.read_bytes()
        path.write_bytes(whole[:-1])
        ((problem,),) = [verify_version(made.store)[1].problems]
        remedies[folder] = problem.remedy
        path.write_bytes(whole)
    assert all("pixelese repair" in remedies[name] for name in FOLDERS[1:6])
    assert all(
        "restore it from a backup" in remedies[name]
        for name in FOLDERS
        if name in ("intake", "pairs", "catalog", "tombstones")
    )


def test_no_such_version_is_told(made: Made, tmp_path: Path) -> None:
    with pytest.raises(CatalogError, match="no version v9; there are v1"):
        verify_version(made.store, 9)
    with pytest.raises(CatalogError, match="no published version"):
        verify_version(Store(tmp_path))


@pytest.mark.parametrize("kind", KINDS)
def test_a_changed_or_missing_file_is_told_of_its_row(
    made: Made, rows: dict[str, ShardRow], kind: str
) -> None:
    path = Path(made.store.url) / rows[kind].path
    whole = path.read_bytes()
    try:
        flip_byte(path, len(whole) // 2)
        with pytest.raises(CorruptShardError, match="sha256") as caught:
            verify_row(made.store, rows[kind])
        assert caught.value.shard == rows[kind].path
        cut_file(path, len(whole) - 1)
        with pytest.raises(CorruptShardError, match="cut short"):
            verify_row(made.store, rows[kind])
        path.unlink()
        with pytest.raises(StorageError, match="is missing"):
            verify_row(made.store, rows[kind])
    finally:
        path.write_bytes(whole)


WRONG_ROWS: list[tuple[str, Callable[[ShardRow], ShardRow], str]] = [
    *((kind, lambda row: replace(row, bytes=row.bytes + 1), "size in bytes") for kind in KINDS),
    *(
        (kind, lambda row: replace(row, num_rows=row.num_rows + 1), "rows")
        for kind in KINDS
        if kind != "tokens"
    ),
    ("pairs", lambda row: replace(row, num_records=7), "holds 8 pairs, the catalog says 7"),
    ("pairs", lambda row: replace(row, records="0" * 64), "digest of the records"),
    ("pairs", lambda row: replace(row, states='{"ok":8,"dns_error":1}'), "states is"),
    ("intake", lambda row: replace(row, states='{"pending":8}'), "states is"),
    ("intake", lambda row: replace(row, records="0" * 64), "digest of the records"),
    ("train", lambda row: replace(row, num_records=1), "records kept in train"),
    ("train", lambda row: replace(row, parts='{"unique":null}'), "fingerprint"),
    (
        "train",
        lambda row: replace(row, states=row.states.replace('"unique":', '"unique":1')),
        "fun",
    ),
    ("tokens", lambda row: replace(row, num_codes=0), "num_codes is"),
    ("tokens", lambda row: replace(row, fingerprint="0" * 64), "fingerprint"),
    ("image", lambda row: replace(row, parts="{}"), "fingerprint"),
    ("relations", lambda row: replace(row, inputs="0" * 64), "fingerprint"),
    ("relations", lambda row: replace(row, kind="intake"), "not those of its kind"),
]


@pytest.mark.parametrize(("kind", "change", "told"), WRONG_ROWS)
def test_a_row_that_says_something_else_is_told(
    made: Made,
    rows: dict[str, ShardRow],
    kind: str,
    change: Callable[[ShardRow], ShardRow],
    told: str,
) -> None:
    row = change(rows[kind])
    assert row != rows[kind]
    shard = ShardFiles(place=(row.source, row.shard), rows=[row])
    found = verify_shard(made.store, shard, complete=False).problems
    assert any(told in problem.what for problem in found), found


def rewrite(store: Store, row: ShardRow, change: Callable[[pa.Table], pa.Table]) -> ShardRow:
    """A file of another content, and a row that has its digest: only what it says is wrong."""
    path = row.path.replace("-", "-f", 1)
    file = write_table(store, path, change(read_parquet(store, row.path)))
    return replace(row, path=path, sha256=file.sha256, bytes=file.bytes)


def turned(table: pa.Table) -> pa.Table:
    return table.take(pa.array(range(table.num_rows - 1, -1, -1)))


def set_first(name: str, value: object) -> Callable[[pa.Table], pa.Table]:
    def change(table: pa.Table) -> pa.Table:
        values = [value, *table[name].to_pylist()[1:]]
        place = table.column_names.index(name)
        field = table.schema.field(name)
        return table.set_column(place, field, pa.array(values, field.type))

    return change


@pytest.mark.parametrize(
    ("kind", "change", "told"),
    [
        ("relations", turned, "keys must ascend"),
        ("image", turned, "keys must ascend"),
        ("image", set_first("sha256", "0" * 64), "column sha256 is not that"),
        ("caption", set_first("caption_sha256", "0" * 64), "column caption_sha256"),
        ("relations", set_first("key", "a" * 26), "list of records"),
        ("relations", set_first("cluster", "a" * 26), "mark of leaders"),
        ("train", set_first("dropped_by", "wide"), "mark of what is kept"),
        ("intake", set_first("row_id", "0" * 64), "keys that are not those of their rows"),
    ],
)
def test_files_that_do_not_agree_are_told(
    made: Made,
    rows: dict[str, ShardRow],
    kind: str,
    change: Callable[[pa.Table], pa.Table],
    told: str,
) -> None:
    wrong = rewrite(made.store, rows[kind], change)
    shard = next(
        item
        for item in group_rows(Catalog(made.store).read())
        if item.place == (wrong.source, wrong.shard)
    )
    shard.rows = [wrong if row.identity == wrong.identity else row for row in shard.rows]
    try:
        found = verify_shard(made.store, shard, complete=True).problems
        assert any(told in item.what and item.path == wrong.path for item in found), found
    finally:
        made.store.delete(wrong.path)


def test_what_a_complete_version_lacks_is_told(made: Made) -> None:
    (shard, *_) = group_rows(Catalog(made.store).read())
    whole = list(shard.rows)
    for kind in ("intake", "signals", "relations", "selected", "tokens"):
        shard.rows = [row for row in whole if row.kind != kind]
        assert verify_shard(made.store, shard, complete=True).problems, kind
        if kind != "intake":
            assert not verify_shard(made.store, shard, complete=False).problems


def test_a_ledger_of_other_pairs_is_told(tmp_path: Path) -> None:
    """Also where no digest of it was recorded."""
    store = Store(tmp_path)
    row = publish_pairs(store, [draw_pair(number) for number in range(9)])
    other = publish_pairs(store, [draw_pair(number) for number in range(100, 109)], number=1)
    verify_row(store, row)
    ledger = tmp_path / ledger_path(row.path)
    ledger.write_bytes((tmp_path / ledger_path(other.path)).read_bytes())
    with pytest.raises(CorruptShardError, match="list of pairs") as caught:
        verify_row(store, row)
    assert caught.value.shard == ledger_path(row.path)
    ledger.unlink()
    with pytest.raises(StorageError, match="is missing"):
        verify_row(store, row)


def test_a_catalog_that_cannot_be_read_is_named(made: Made) -> None:
    path = Path(made.store.url) / version_path(made.number)
    whole = path.read_bytes()
    path.write_bytes(b"no Parquet at all")
    try:
        assert named(made.store) == {version_path(made.number)}
    finally:
        path.write_bytes(whole)


def test_a_remote_version_is_read_from_the_bucket_not_the_cache(s3: str, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIXELESE_CACHE", str(tmp_path))
        store = Store(f"{s3}-verify")
        made = make_version(store)
        number, verdict = verify_version(store, num_threads=2)
        assert (number, verdict.problems) == (made.number, ())
        damaged = [made.rows("intake")[2].path, made.rows("tokens")[0].path]
        for name in damaged:
            store.write(name, store.read(name)[:-1] + b"?")
        missing = made.rows("signals")[0].path
        store.delete(missing)
        found = verify_version(store, num_threads=2)[1].problems
        assert {problem.path for problem in found} == {*damaged, missing}
        assert [problem.path for problem in found if problem.is_missing] == [missing]
        assert not list(tmp_path.rglob("verify-*"))  # nothing is left of the copies


def test_a_document_shard_alone(tmp_path: Path) -> None:
    store = Store(tmp_path)
    row = publish_documents(store, ["one", "two"])
    with pytest.raises(CorruptShardError, match="digest of the records"):
        verify_row(store, row)
