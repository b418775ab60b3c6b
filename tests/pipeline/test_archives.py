"""Tars: every readable member is used, whatever became of the rest."""

import gzip
import io
import json
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.archives import index_tar, read_archive
from pipeline.rows import IntakeRow
from pipeline.sources import SourceFile
from schemas.errors import SourceError
from schemas.record import fetch_id

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def make_tar(members: list[tuple[str, bytes]], *, kind: int = tarfile.USTAR_FORMAT) -> bytes:
    sink = io.BytesIO()
    with tarfile.open(fileobj=sink, mode="w", format=kind) as tar:
        for name, data in members:
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return sink.getvalue()


def read(data: bytes, folder: Path, *, column: str = "TEXT") -> list[IntakeRow]:
    path = folder / "a.tar"
    path.write_bytes(data)
    file = SourceFile(str(path), len(data), "")
    return list(read_archive(file, place="a.tar", caption_column=column, scratch=folder))


def good(rows: list[IntakeRow]) -> list[tuple[str, str | None]]:
    return [(row.fetch_id, row.caption) for row in rows if row.state is None]


def reasons(rows: list[IntakeRow]) -> list[str | None]:
    return [row.reason for row in rows if row.state is not None]


def numbered(num_samples: int) -> list[tuple[str, bytes]]:
    members = []
    for number in range(num_samples):
        members.append((f"{number:03d}.jpg", b"image %d" % number * 100))
        members.append((f"{number:03d}.txt", b"caption %d" % number))
    return members


def test_offsets_point_at_the_images(tmp_path: Path) -> None:
    data = make_tar(numbered(5))
    rows = read(data, tmp_path)
    assert reasons(rows) == []
    for number, row in enumerate(rows):
        assert row.offset is not None
        assert row.size_bytes is not None
        image = data[row.offset : row.offset + row.size_bytes]
        assert image == b"image %d" % number * 100
        assert (row.fetch_id, row.caption) == (fetch_id(image), f"caption {number}")
        assert row.url == f"a.tar#{number:03d}.jpg"


def test_captions_come_from_txt_then_the_column_then_caption(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"A"),
        ("a.txt", b"from txt"),
        ("a.json", json.dumps({"TEXT": "from json"}).encode()),
        ("b.png", b"B"),
        ("b.json", json.dumps({"TEXT": "column", "caption": "caption"}).encode()),
        ("c.webp", b"C"),
        ("c.json", json.dumps({"caption": "caption"}).encode()),
        ("d.jpg", b"D"),
        ("d.txt", b""),
        ("d.json", json.dumps({"caption": "behind an empty txt"}).encode()),
        ("e.jpg", b"E"),
        ("e.json", json.dumps({"TEXT": ["first", "second", 3]}).encode()),
    ]
    captions = [row.caption for row in read(make_tar(members), tmp_path)]
    assert captions == [
        "from txt",
        "column",
        "caption",
        "behind an empty txt",
        "first",
        "second",
    ]


def test_several_captions_share_one_image(tmp_path: Path) -> None:
    rows = read(
        make_tar([("a.jpg", b"A"), ("a.json", b'{"captions": ["x", "y"]}')]),
        tmp_path,
        column="captions",
    )
    assert [row.caption for row in rows] == ["x", "y"]
    assert len({row.fetch_id for row in rows}) == 1
    assert len({row.key for row in rows}) == 2


def test_names_split_at_the_first_dot_of_the_last_part(tmp_path: Path) -> None:
    members = [
        ("v1.0/a.left.jpg", b"A"),
        ("v1.0/a.txt", b"one"),
        ("v1.1/a.jpg", b"B"),
        ("v1.1/a.caption.txt", b"two"),
        ("weird #name ü.JPG", b"C"),
        ("weird #name ü.txt", b"three"),
    ]
    rows = read(make_tar(members, kind=tarfile.PAX_FORMAT), tmp_path)
    assert [row.caption for row in rows] == ["one", "two", "three"]
    assert str(rows[2].url).rpartition("#")[0] == "a.tar"


def test_members_in_any_order_find_each_other(tmp_path: Path) -> None:
    members = numbered(6)
    unordered = members[::2] + members[1::2][::-1]
    assert good(read(make_tar(unordered), tmp_path)) == good(read(make_tar(members), tmp_path))


@pytest.mark.parametrize("kind", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_long_names_are_read_in_every_dialect(tmp_path: Path, kind: int) -> None:
    name = "/".join(["folder" * 4] * 5) + ("/" + "x" * 90 if kind != tarfile.USTAR_FORMAT else "/x")
    rows = read(make_tar([(f"{name}.jpg", b"A"), (f"{name}.txt", b"one")], kind=kind), tmp_path)
    assert [(row.url, row.caption) for row in rows] == [(f"a.tar#{name}.jpg", "one")]


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    first, second = numbered(4)[:4], numbered(4)[4:]
    rows = read(make_tar(first) + make_tar(second), tmp_path)
    assert len(good(rows)) == 4
    assert reasons(rows) == []


def test_parts_without_partner_are_rows_with_a_reason(tmp_path: Path) -> None:
    members = [
        ("a.jpg", b"A"),
        ("b.txt", b"no image"),
        ("c.jpg", b"C"),
        ("c.png", b"C2"),
        ("c.txt", b"two images"),
        ("d.jpg", b"D"),
        ("d.json", b"{broken"),
        ("e.jpg", b"E"),
        ("e.txt", b"None"),
    ]
    rows = read(make_tar(members), tmp_path)
    assert sorted(map(str, reasons(rows))) == [
        "empty_caption",
        "empty_caption",
        "empty_caption",
        "extra_image",
        "no_image",
    ]
    assert [row.caption for row in rows if row.state is None] == ["two images"]


def test_a_cut_tar_gives_what_came_before_the_cut(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    data = make_tar(numbered(10))
    rows = read(data[: 512 * 4 * 5 + 700], tmp_path)
    assert 4 <= len(good(rows)) < 10
    assert "cut_member" in reasons(rows)
    assert "damaged tar" in caplog.text


def test_a_tar_cut_between_two_members_is_known_to_be_cut(tmp_path: Path) -> None:
    data = make_tar(numbered(2))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        end = tar.getmembers()[2].offset
    rows = read(data[:end], tmp_path)
    assert len(good(rows)) == 1
    assert reasons(rows) == ["no_end"]


def test_a_damaged_header_costs_its_own_member(tmp_path: Path) -> None:
    """Python's tarfile ends in silence here, and loses all that follows."""
    data = bytearray(make_tar(numbered(10)))
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        offset = tar.getmember("004.jpg").offset
    data[offset : offset + 100] = b"\xff" * 100
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        assert len(tar.getnames()) == 8
    rows = read(bytes(data), tmp_path)
    assert len(good(rows)) == 9
    assert sorted(map(str, reasons(rows))) == ["bad_header", "no_image"]


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_no_damage_makes_the_index_fail_or_reach_outside(data: st.DataObject) -> None:
    damaged = bytearray(make_tar(numbered(3), kind=tarfile.PAX_FORMAT))
    for place in data.draw(st.lists(st.integers(0, len(damaged) - 1), max_size=8)):
        damaged[place] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(0, len(damaged)))
    index = index_tar(io.BytesIO(bytes(damaged[:end])))
    assert all(m.offset >= 0 and m.offset + m.size_bytes <= end for m in index.members)


def test_what_is_no_tar_is_named(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"a\.tar is no tar"):
        read(b"<html>" * 1000, tmp_path)


def test_a_compressed_tar_is_refused_with_the_remedy(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="Unpack it"):
        read(gzip.compress(make_tar(numbered(1))), tmp_path)


@pytest.mark.shared
@pytest.mark.skipif(
    not SHARED.exists(), reason="the sample photographs are not beside the checkout"
)
def test_photographs_with_five_captions_each(tmp_path: Path) -> None:
    path = SHARED / "photos-cc" / "photos-cc-000.tar"
    file = SourceFile(str(path), path.stat().st_size, "")
    rows = list(read_archive(file, place="x", caption_column="captions", scratch=tmp_path))
    assert len(rows) == 255
    assert len({row.fetch_id for row in rows}) == 51
    assert reasons(rows) == []
