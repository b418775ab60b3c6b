"""An evaluation set is read once, as if it were ingested, and never in part."""

import hashlib
import io
import logging
import os
import tarfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from pipeline.decontaminate import load_evaluation_hashes
from pipeline.evaluation_sets import (
    HASHES_SCHEMA,
    find_hash_lists,
    list_digest,
    plan_evaluation_sets,
    write_hash_list,
)
from pipeline.images import Prepared, prepare_image
from pipeline.lineage import want_relations
from pipeline.pair_shard import Pair
from pipeline.relate import relate
from pipeline.shard_table import read_parquet, read_table
from schemas.declaration import Declaration
from schemas.errors import DeclarationError, SourceError
from schemas.storage import Store
from tests.pipeline.corpora import declare, draw_image, draw_pair, measure_all, publish_pairs


def one_set(kind: str, location: str, **changes: object) -> Declaration:
    return declare(decontaminate=[{"name": "coco", kind: location}], **changes)


def read_set(store: Store, declaration: Declaration) -> str:
    """The path of the only set's hashes."""
    (plan,) = plan_evaluation_sets(declaration, store)
    return write_hash_list(store, plan)


def rows_of(store: Store, path: str) -> set[tuple[str, str]]:
    table = read_parquet(store, path)
    assert table.schema.equals(HASHES_SCHEMA)
    return {(row["relation"], row["hash"]) for row in table.to_pylist()}


def write_tar(path: Path, members: Sequence[tuple[str, bytes]]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def test_folder_and_tar_of_the_same_pictures_have_the_same_hashes(tmp_path: Path) -> None:
    store = Store(tmp_path)
    images = {f"{number}.jpg": draw_image(number, width=128) for number in (3, 4)}
    (tmp_path / "folder").mkdir()
    for name, data in images.items():
        (tmp_path / "folder" / name).write_bytes(data)
        (tmp_path / "folder" / f"{name}.txt").write_text("a caption")
    write_tar(tmp_path / "set.tar", [*images.items(), ("3.txt", b"a caption")])
    folder = read_set(store, one_set("folder", "folder"))
    tar = read_set(store, one_set("tars", "*.tar"))
    assert rows_of(store, folder) == rows_of(store, tar)
    assert list_digest(folder) == list_digest(tar)
    assert folder != tar  # named by their files
    by_kind = [relation for relation, _ in rows_of(store, folder)]
    assert {kind: by_kind.count(kind) for kind in by_kind} == {
        "bytes": 4,  # as they came, and as they would be stored
        "pixels": 2,
        "perceptual": 2,
    }


def test_a_set_is_read_again_only_if_its_files_or_the_images_settings_change(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    (tmp_path / "folder").mkdir()
    picture = tmp_path / "folder" / "1.jpg"
    picture.write_bytes(draw_image(3))
    declaration = one_set("folder", "folder")
    path = read_set(store, declaration)
    assert find_hash_lists(store, plan_evaluation_sets(declaration, store)) == {"coco": path}
    other = one_set("folder", "folder", images={"max_side": 32})
    assert find_hash_lists(store, plan_evaluation_sets(other, store)) == {}
    os.utime(picture, (1, 1))
    assert find_hash_lists(store, plan_evaluation_sets(declaration, store)) == {}
    again = read_set(store, declaration)
    assert again != path
    assert list_digest(again) == list_digest(path)  # so that nothing goes stale


def test_an_ingested_copy_of_a_photo_in_another_size_is_a_hit(tmp_path: Path, shared: Path) -> None:
    """The set holds photos as they came; the corpus their copies, shrunk and compressed anew."""
    store = Store(tmp_path)
    with tarfile.open(shared / "data" / "photos-dev" / "photos-000.tar") as tar:
        members = [item for item in tar if item.name.endswith(".jpg")][:24]
        photos = [tar.extractfile(item).read() for item in members]  # type: ignore[union-attr]
    (tmp_path / "folder").mkdir()
    for number, photo in enumerate(photos[:12]):
        (tmp_path / "folder" / f"{number}.jpg").write_bytes(photo)
    declaration = one_set("folder", "folder", images={"max_side": 256})
    path = read_set(store, declaration)
    pairs = [
        Pair(draw_pair(number).key, prepared(recompressed(photo), declaration), "", {"url": "u"})
        for number, photo in enumerate(photos)
    ]
    shard = publish_pairs(store, pairs)
    signals = measure_all(store, declaration, [shard])
    place = shard.source, shard.shard
    (item,) = declaration.decontaminate
    wanted = want_relations(shard, "", evaluation={"coco": list_digest(path)})
    (row,) = relate(
        store,
        [shard],
        {place: next(row for row in signals if row.signal == "image")},
        {},
        {place: wanted},
        distance=4,
        evaluation=[load_evaluation_hashes(store, item, path, distance=4)],
    )
    found = {pair["key"]: pair["contaminated_by"] for pair in read_table(store, row).to_pylist()}
    assert [found[pair.key] for pair in pairs] == ["coco"] * 12 + [None] * 12


def recompressed(photo: bytes) -> bytes:
    with Image.open(io.BytesIO(photo)) as opened:
        smaller = opened.convert("RGB").resize((opened.width * 4 // 5, opened.height * 4 // 5))
    buffer = io.BytesIO()
    smaller.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def prepared(data: bytes, declaration: Declaration) -> bytes:
    found = prepare_image(data, declaration.images)
    assert isinstance(found, Prepared)
    return found.image


def test_lists_of_hashes_are_read_as_they_are(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sha256 = hashlib.sha256(b"a picture").hexdigest()
    (tmp_path / "list.txt").write_text(f"# of 2026\n\n{sha256.upper()}\n00ff00FF00ff00ff\n")
    declaration = one_set("hashes", "list.txt")
    path = read_set(store, declaration)
    assert rows_of(store, path) == {("bytes", sha256), ("perceptual", "00ff00ff00ff00ff")}


def test_at_distance_zero_only_hashes_that_were_listed_as_such_are_compared(
    tmp_path: Path,
) -> None:
    store = Store(tmp_path)
    picture = draw_pair(9)
    shard = publish_pairs(store, [picture])
    image = measure_all(store, declare(), [shard])[0]
    phash = read_table(store, image)["phash"][0].as_py()
    (tmp_path / "list.txt").write_text(f"{phash:016x}\n")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "near.jpg").write_bytes(draw_image(9, quality=91))
    for kind, location, expected in (("hashes", "list.txt", "coco"), ("folder", "folder", None)):
        declaration = one_set(kind, location)
        path = read_set(store, declaration)
        (item,) = declaration.decontaminate
        wanted = want_relations(shard, "", distance=0, evaluation={"coco": list_digest(path)})
        place = shard.source, shard.shard
        (row,) = relate(
            store,
            [shard],
            {place: image},
            {},
            {place: wanted},
            distance=0,
            evaluation=[load_evaluation_hashes(store, item, path, distance=0)],
        )
        assert read_table(store, row)["contaminated_by"].to_pylist() == [expected]


def test_what_cannot_be_decoded_is_compared_by_its_bytes_and_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Store(tmp_path)
    broken = draw_image(3)[:200]
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "broken.jpg").write_bytes(broken)
    (tmp_path / "folder" / "good.jpg").write_bytes(draw_image(4))
    with caplog.at_level(logging.WARNING):
        path = read_set(store, one_set("folder", "folder"))
    assert ("bytes", hashlib.sha256(broken).hexdigest()) in rows_of(store, path)
    assert "set=coco count=1 of=2" in caplog.text


def test_sets_that_cannot_be_read_whole_are_refused(tmp_path: Path) -> None:
    store = Store(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty.txt").write_text("# nothing yet\n")
    (tmp_path / "bad.txt").write_text("0" * 64 + "\nno hash\n")
    write_tar(tmp_path / "empty.tar", [("1.txt", b"a caption")])
    write_tar(tmp_path / "cut.tar", [("1.jpg", draw_image(1))])
    (tmp_path / "cut.tar").write_bytes((tmp_path / "cut.tar").read_bytes()[:700])
    for kind, location, message in (
        ("folder", "missing", "decontaminate: .*'coco': nothing found at"),
        ("folder", "empty", "decontaminate: .*'coco'"),
        ("tars", "missing*.tar", "nothing found at"),
        ("hashes", "missing.txt", "nothing found at"),
        ("hashes", "empty.txt", "evaluation set 'coco' is empty"),
        ("hashes", "bad.txt", r"bad.txt:2: 'no hash' is no hash"),
        ("tars", "empty.tar", "evaluation set 'coco' is empty"),
        ("tars", "cut.tar", r"cut.tar is damaged \(cut_member\): an evaluation set that is read"),
    ):
        with pytest.raises(SourceError, match=message):
            read_set(store, one_set(kind, location))


def test_two_sets_of_one_name_are_refused() -> None:
    from schemas.declaration import parse_declaration

    text = """\
sources: [{name: web, urls: list.parquet}]
decontaminate:
  - {name: coco, folder: one}
  - {name: coco, folder: two}
"""
    with pytest.raises(DeclarationError, match="two evaluation sets are called 'coco'"):
        parse_declaration(text)
