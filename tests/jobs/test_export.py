"""`pixelese export` as it is used."""

import json
from pathlib import Path

import pytest

from jobs.commands.export import export
from tests.jobs.commands import run
from tests.trainer.corpora import SHAPES, draw_corpus, write_corpus


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("exported")
    return write_corpus(folder, draw_corpus(SHAPES["pairs and texts"], seed=1))


def test_an_export_tells_what_it_wrote_and_the_same_again_does_nothing(
    corpus: str, tmp_path: Path
) -> None:
    output = str(tmp_path / "out")
    done = run(export, f"{corpus}@v1", "--format", "mds", "--output", output, "--workers", "1")
    assert done.status == 0, done.err
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert f"{manifest['num_documents']} documents of v1:train" in done.out
    assert f"{manifest['num_tokens']:,} tokens" in done.out
    again = run(export, f"{corpus}@v1", "--format", "mds", "--output", output)
    assert again.out.startswith(f"{output} is there already: nothing to do")


def test_all_pairs_of_one_direction(corpus: str, tmp_path: Path) -> None:
    for share in ("0", "1"):
        done = run(
            export,
            *(corpus, "--format", "parquet", "--output", str(tmp_path / share)),
            *("--image-first", share, "--no-bos", "--no-places", "--compression", "none"),
        )
        assert done.status == 0, done.err
        settings = json.loads((tmp_path / share / "manifest.json").read_text())["settings"]
        assert (settings["image_first"], settings["bos"], settings["places"]) == (
            float(share),
            False,
            False,
        )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--format", "tfrecord"], "use megatron, mds, parquet"),
        (["--format", "mds", "--split", "validation"], "no records in split 'validation'"),
        (["--format", "megatron", "--compression", "zstd"], "use none"),
    ],
)
def test_what_cannot_be_is_one_clear_message(
    arguments: list[str], told: str, corpus: str, tmp_path: Path
) -> None:
    done = run(export, corpus, *arguments, "--output", str(tmp_path / "out"))
    assert done.status == 1
    assert told in done.err
    assert not (tmp_path / "out").exists()
