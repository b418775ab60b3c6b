"""A damaged file is named, made again from what it was made from, and proven to be the same."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from jobs.commands.repair import repair
from jobs.commands.verify import verify
from schemas.catalog import KINDS, Catalog, ShardRow
from schemas.layout import ledger_path
from schemas.storage import Store
from tests.jobs.commands import run
from tests.jobs.conftest import SmallCorpus
from tests.pipeline.corpora import cut_file, flip_byte

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

DERIVED = ("signals", "relations", "selected", "tokens")


@pytest.fixture
def copied(undisturbed: SmallCorpus, tmp_path: Path) -> SmallCorpus:
    """A published corpus of the test's own."""
    shutil.copytree(undisturbed.root, tmp_path / "corpus")
    return SmallCorpus(tmp_path / "corpus")


def rows(corpus: SmallCorpus, kind: str) -> list[ShardRow]:
    return Catalog(Store(corpus.root)).read().rows(kind)


def contents(corpus: SmallCorpus) -> dict[str, bytes]:
    folders = ("intake", "pairs", *DERIVED, "catalog")
    return {path: data for name in folders for path, data in corpus.files(name).items()}


def test_a_whole_version_is_told_with_its_size(undisturbed: SmallCorpus) -> None:
    found = contents(undisturbed)
    done = run(verify, f"{undisturbed.root}@v1", "--workers", "2")
    assert done.status == 0
    assert done.out.startswith(f"all {len(found)} files of v1 are whole (")
    assert sum(len(data) for data in found.values()) > 100_000


def test_damage_is_listed_with_what_to_do(copied: SmallCorpus) -> None:
    tokens, pairs = rows(copied, "tokens")[0], rows(copied, "pairs")[0]
    flip_byte(copied.root / tokens.path, 100)
    cut_file(copied.root / pairs.path, 5000)
    (copied.root / ledger_path(pairs.path)).unlink()
    done = run(verify, str(copied.root))
    assert done.status == 1
    told = "".join(done.out.split())  # a table folds long names
    for path in (tokens.path, pairs.path, ledger_path(pairs.path)):
        assert path in told
    assert "pixeleserepair" in told
    assert "wascutshort" in told
    assert "ismissing" in told
    assert f"3 of {len(contents(copied)) + 1} files of v1 are not whole" in done.out


def test_damaged_derived_files_come_back_byte_for_byte(copied: SmallCorpus) -> None:
    """One of every kind at once: what is made from a damaged file waits until that is back."""
    whole = contents(copied)
    signals = rows(copied, "signals")
    damaged = [next(row for row in signals if row.signal == name) for name in ("image", "caption")]
    damaged += [rows(copied, kind)[-1] for kind in ("relations", "selected")]
    tokens = rows(copied, "tokens")
    damaged += [next(row for row in tokens if row.source == name) for name in ("photos", "books")]
    for row in damaged:
        flip_byte(copied.root / row.path, 50)
    (copied.root / damaged[0].path).unlink()
    done = run(repair, str(copied.root))
    assert done.status == 0, done.out + done.err
    assert f"{len(damaged)} of {len(damaged)} damaged files of v1 are whole again" in done.out
    assert contents(copied) == whole
    assert not list(copied.root.glob(".tmp-restore*"))
    assert copied.files("runs") == {}
    assert run(repair, str(copied.root)).out.startswith("nothing to repair")


def test_what_the_web_gave_is_fetched_anew_only_where_that_is_asked_for(
    copied: SmallCorpus,
) -> None:
    whole = contents(copied)
    pairs = rows(copied, "pairs")[1]
    tokens = next(row for row in rows(copied, "tokens") if row.inputs == pairs.sha256)
    flip_byte(copied.root / pairs.path, 700)
    flip_byte(copied.root / tokens.path, 50)
    done = run(repair, str(copied.root))
    assert done.status == 1
    told = " ".join(done.out.split())
    assert f"not made again: it is made from {pairs.path}, which is damaged too" in told
    assert "cannot be computed: restore it from a backup, or run `pixelese repair --ref" in told
    done = run(repair, str(copied.root), "--refetch")
    assert done.status == 0, done.out + done.err
    assert f"fetched anew: {pairs.num_records} pairs came" in done.out
    assert "published v2" in done.out
    assert run(verify, str(copied.root)).status == 0
    after = contents(copied)  # a folder gives the same bytes once more
    assert after[pairs.path] == whole[pairs.path]
    assert after[tokens.path] == whole[tokens.path]


def republish(corpus: SmallCorpus, changed: dict[ShardRow, ShardRow]) -> None:
    """A version in which some rows say something else, as if they had been made elsewhere."""
    catalog = Catalog(Store(corpus.root))
    version = catalog.read()
    all_rows = [row for kind in KINDS for row in version.rows(kind)]
    catalog.commit(
        [changed.get(row, row) for row in all_rows],
        parent=version.number,
        declaration=version.declaration,
        complete=True,
    )


def test_a_file_that_comes_out_otherwise_is_taken_only_where_that_is_asked_for(
    copied: SmallCorpus,
) -> None:
    old = rows(copied, "relations")[0]
    republish(copied, {old: replace(old, sha256="0" * 64, numeric="elsewhere")})
    done = run(repair, str(copied.root))
    assert done.status == 1
    assert "comes out otherwise" in done.out
    assert "--accept-new-digest" in " ".join(done.out.split())
    assert Catalog(Store(copied.root)).latest() == 2
    assert run(repair, f"{copied.root}@v1").out.startswith("nothing to repair")
    done = run(repair, str(copied.root), "--accept-new-digest")
    assert done.status == 0, done.out + done.err
    assert "published v3" in done.out
    assert run(verify, str(copied.root)).status == 0
    assert rows(copied, "relations")[0].sha256 == old.sha256


def test_what_cannot_be_proven_is_left_as_it_is(copied: SmallCorpus) -> None:
    one, two = [row for row in rows(copied, "tokens") if row.source == "photos"][:2]
    assert one.numeric
    wrong = {
        one: replace(one, sha256="0" * 64),
        two: replace(two, sha256="0" * 64, fingerprint="0" * 64),
    }
    republish(copied, wrong)
    before = copied.files("tokens")
    done = run(repair, str(copied.root), "--accept-new-digest")
    assert done.status == 1
    told = " ".join(done.out.split())
    assert f"in the same numeric environment ({one.numeric})" in told
    assert "what it was made with has changed since" in told
    assert copied.files("tokens") == before
    assert Catalog(Store(copied.root)).latest() == 2


def test_an_old_version_is_repaired_but_never_changed(copied: SmallCorpus) -> None:
    whole = contents(copied)
    row = rows(copied, "relations")[0]
    republish(copied, {})
    flip_byte(copied.root / row.path, 50)
    refused = run(repair, f"{copied.root}@v1", "--refetch")
    assert refused.status == 1
    assert "v1 is not the newest version (v2)" in refused.err
    done = run(repair, f"{copied.root}@v1")
    assert done.status == 0, done.out + done.err
    assert copied.files("relations")[row.path] == whole[row.path]
