"""The demo walks the whole way, finds what was planted, and harms no folder that is not its own."""

from pathlib import Path

import pytest

from jobs.demo.captioning import compare, probe_codes, score_captions
from jobs.demo.findings import rank_correlation
from jobs.demo.scenes import draw_scene
from jobs.demo.walk import Budget, walk
from schemas.catalog import Catalog
from schemas.errors import StorageError
from schemas.storage import Store

SMALL = Budget(
    num_rows=200,
    rows_per_shard=100,
    tokenizer_steps=8,
    update_steps=4,
    model_steps=10,
    batch_size=8,
    num_held_out=20,
)


@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_whole_way(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    report = walk(tmp_path / "demo", budget=SMALL)
    page = report.read_text()
    assert "data:image/jpeg;base64" in page
    assert "as expected" in page
    assert "Pictures from captions" in page
    assert "drawn from the stored codes" in page
    catalog = Catalog(Store(tmp_path / "demo" / "corpus"))
    assert catalog.numbers() == [1, 2, 3]
    first, second = (catalog.read(number) for number in (2, 3))
    assert first.complete
    assert second.complete
    assert {row.path for row in first.rows("pairs")} == {row.path for row in second.rows("pairs")}
    assert not {row.path for row in first.rows("tokens")} & {
        row.path for row in second.rows("tokens")
    }
    printed = capfd.readouterr().out
    found = {line[:34].strip(): line for line in printed.splitlines()}
    assert "yes" in found["input rows accounted for"]
    assert "yes" in found["broken replies in the right state"]
    assert "yes" in found["wrong captions dropped"]
    walk_again = tmp_path / "demo" / "corpus" / "corpus.yaml"
    assert walk_again.exists()


def test_another_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(StorageError, match="holds no demo"):
        walk(tmp_path, budget=SMALL)
    assert (tmp_path / "mine.txt").read_text() == "keep"


def test_scores_tell_right_captions_from_others() -> None:
    scenes = [draw_scene(seed) for seed in range(60)]
    captions = [scene.caption for scene in scenes]
    assert score_captions(captions, scenes)["all"] == 1.0
    scores = {item.name: item for item in compare(captions, scenes, {"shape": 0.5})}
    assert scores["all"].captions == 1.0
    assert scores["all"].shuffled < 0.5
    assert scores["shape"].probe == 0.5


def test_rank_correlation_handles_ties() -> None:
    import numpy as np

    assert rank_correlation(np.array([1, 1, 2, 3]), np.array([5, 5, 6, 7])) == pytest.approx(1.0)
    assert rank_correlation(np.array([1, 2, 3]), np.array([3, 2, 1])) == pytest.approx(-1.0)


def test_the_probe_reads_what_codes_hold() -> None:
    import numpy as np

    from schemas.sentence import write_sentences

    scenes = [draw_scene(seed) for seed in range(200)]
    places = sorted({scene.objects[0].place for scene in scenes})
    masks = np.ones((200, 4), bool)
    codes = np.array([[places.index(scene.objects[0].place), 0, 0, 0] for scene in scenes])
    codebook = np.eye(16, dtype=np.float32)
    words = write_sentences(masks, codes.ravel(), codebook_size=16)
    told = [scene.description for scene in scenes]
    found = probe_codes((words, told), (words, told), codebook, num_patches=4)
    assert found["place"] == 1.0
    assert found["texture"] < 0.6
