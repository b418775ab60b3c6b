"""The page of a tokenizer's measurements stands alone, and shows no picture twice."""

import re
from pathlib import Path

import pytest

from jobs.tokenizer_page import write_tokenizer_page
from tests.jobs.conftest import Tokenizers, write_images
from tests.jobs.report.parsed import ParsedPage
from tokenizer.evaluate import evaluate


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[bytes]:
    folder = tmp_path_factory.mktemp("measured")
    write_images(folder, 0, 24)
    return [path.read_bytes() for path in sorted(folder.glob("*.png"))]


@pytest.mark.parametrize(("name", "num_parts"), [("first", 3), ("second", 2)])
def test_a_page_shows_measurements_and_pictures(
    tokenizers: Tokenizers, pictures: list[bytes], tmp_path: Path, name: str, num_parts: int
) -> None:
    url = str(getattr(tokenizers, name))
    result = evaluate(url, pictures)
    path = tmp_path / "pages" / "tokenizer.html"
    assert write_tokenizer_page(path, result, url, pictures, device="cpu") == path
    page = path.read_text()
    assert result["artifact"]["fingerprint"][:16] in page
    assert f"{result['reconstruction']['centred']['deployed']['all']:.3f}" in page
    assert all(failure in page for failure in result["failures"])
    groups = re.findall(r"<h3>(.*)</h3>", page)
    assert groups[:2] == ["Plainest", "Busiest"]
    assert ("Drawn worst" in groups) == (num_parts == 3)
    num_figures = page.count("<figure>")
    assert 0 < num_figures <= len(pictures)
    parsed = ParsedPage(page)
    assert len(parsed.addresses) == num_parts * num_figures
    assert all(address.startswith("data:image/jpeg;base64,") for address in parsed.addresses)
    assert parsed.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert ("no pixel decoder" in page) == (num_parts == 2)
