"""What the page promises: one file, every section that has data, no other, and nothing fetched."""

from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from jobs.demo.scenes import draw_scene, score_caption
from jobs.report.data import (
    CaptionSample,
    ClusterMember,
    CodebookUsage,
    Contamination,
    CurveLine,
    DrawnCaption,
    DuplicateCluster,
    Duplicates,
    Example,
    Fact,
    Finding,
    FunnelRule,
    GalleryPicture,
    HostFailures,
    Hosts,
    LedgerState,
    Mark,
    ReportData,
    Sample,
    SentenceLengths,
    SignalHistogram,
    StateHosts,
    ThresholdEdge,
    TrainingCurve,
    VersionEntry,
)
from jobs.report.page import render_report, write_report
from schemas.errors import SourceError, StorageError
from tests.jobs.report.parsed import ParsedPage

SECTIONS = {
    "facts": "facts",
    "findings": "findings",
    "history": "history",
    "states": "ledger",
    "hosts": "hosts",
    "funnel": "funnel",
    "signals": "signals",
    "edges": "edges",
    "duplicates": "duplicates",
    "contamination": "contamination",
    "lengths": "lengths",
    "codebook": "codebook",
    "gallery": "gallery",
    "curves": "curves",
    "samples": "samples",
    "drawn_captions": "drawn",
}
"""Field of ReportData -> id of its section."""


@pytest.fixture(scope="module")
def data() -> ReportData:
    rng = np.random.default_rng(0)
    scene = draw_scene(3)
    said = "small red ring at top on plain gray"
    codes = rng.integers(2, 40, 500)
    member = ClusterMember(
        image=scene.jpeg(), key="k", caption="twin", relation="first", distance=0, fate="kept"
    )
    return ReportData(
        title="Demo",
        subtitle="All of it, small",
        facts=(Fact(label="version", value="v2", note="complete"),),
        findings=(
            Finding(what="duplicates", found="89", expected="90", good=False),
            Finding(what="wrong captions", found="240", expected="240", good=True, note="all"),
            Finding(what="words", found="14", expected="some"),
        ),
        history=(
            VersionEntry(
                number=2,
                time="2026-01-02 03:04:05 UTC",
                note="tightened",
                complete=False,
                changes=("select.size: min_side >= 64 -> min_side >= 128",),
                made="selected 3, tokens 2",
                encoded="subset 1,200",
                num_records=2610,
                num_tokens=400_000,
                num_tokens_made=100_000,
                took="12 min",
                cost="0.42",
                lacks_price=True,
            ),
        ),
        states=(
            LedgerState(state="http_5xx", num_rows=25, reasons={"500": 20, "503": 5}),
            LedgerState(state="ok", num_rows=2850),
        ),
        hosts=Hosts(
            num_rows=2000,
            num_failed=25,
            num_hosts=40,
            num_failing_hosts=9,
            worst=(HostFailures(host="slow.example", num_rows=50, failures={"http_5xx": 25}),),
            by_state=(
                StateHosts(
                    state="http_5xx",
                    num_rows=25,
                    reasons={"status_503": 25},
                    hosts={"slow.example": 20},
                    num_hosts=3,
                ),
            ),
        ),
        num_pairs=2850,
        funnel=(
            FunnelRule(
                name="matches_caption",
                expression="clip_score >= 0.35 and 1 < 2",
                num_dropped_alone=241,
                num_dropped_in_order=240,
                num_remaining=2610,
            ),
        ),
        signals=(
            SignalHistogram(
                name="clip_score",
                values=rng.normal(0.5, 0.1, 900),
                marks=(Mark(value=0.35, sign=">=", rule="matches_caption"),),
                num_unknown=1234,
            ),
            SignalHistogram(name="min_side", values=rng.integers(90, 300, 900), unit="pixels"),
        ),
        edges=(
            ThresholdEdge(
                rule="matches_caption",
                threshold="clip_score >= 0.35",
                passing=(Example(image=scene.jpeg(), caption="near", value=0.35012, fate="kept"),),
                failing=(),
            ),
        ),
        duplicates=Duplicates(
            num_pairs=2850,
            num_later=90,
            relations={"bytes": 88, "perceptual": 2},
            distances={1: 2},
            clusters=(
                DuplicateCluster(
                    num_members=9,
                    members=(member, replace(member, relation="perceptual", distance=1)),
                ),
            ),
        ),
        contamination=(Contamination(evaluation_set="coco", num_pairs=1, examples=(member,)),),
        lengths=SentenceLengths(num_codes=codes, num_places=codes // 3),
        codebook=CodebookUsage(counts=rng.integers(0, 3, 256)),
        gallery=(
            GalleryPicture(
                image=scene.jpeg(),
                keep_mask=np.arange(64) < 9,
                grid=8,
                drawn=np.full((64, 64, 3), 90, np.uint8),
                caption=scene.caption,
            ),
        ),
        curves=(
            TrainingCurve(
                title="Language model",
                value_label="loss (nats a token)",
                lines=(CurveLine(name="text", steps=np.arange(50), values=3 - np.arange(50) / 50),),
            ),
        ),
        samples=(
            CaptionSample(
                image=scene.jpeg(),
                truth=scene.caption,
                generated=said,
                marks=score_caption(said, scene),
            ),
        ),
        drawn_captions=(
            DrawnCaption(
                caption=scene.caption,
                image=scene.jpeg(),
                from_codes=np.full((64, 64, 3), 90, np.uint8),
                from_caption=np.full((64, 64, 3), 180, np.uint8),
            ),
        ),
    )


def test_a_full_page_has_every_section_and_needs_nothing_else(data: ReportData) -> None:
    html = render_report(data)
    page = ParsedPage(html)
    assert page.ids == set(SECTIONS.values())
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert len(page.addresses) == 11
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert "url(" not in html
    assert "@import" not in html
    assert "prefers-color-scheme: dark" in html


def test_every_field_is_a_section_or_the_head() -> None:
    samples = {"ledger_sample", "pair_sample", "picture_sample", "token_sample"}
    known = {*SECTIONS, *samples, "title", "subtitle", "num_pairs", "why_not_drawn"}
    assert {field.name for field in fields(ReportData)} == known


@pytest.mark.parametrize("name", SECTIONS)
def test_a_section_without_data_is_left_out(data: ReportData, name: str) -> None:
    single = ("hosts", "duplicates", "lengths", "codebook")
    absent: dict[str, Any] = {name: None if name in single else ()}
    empty = replace(data, **absent)
    assert ParsedPage(render_report(empty)).ids == set(SECTIONS.values()) - {SECTIONS[name]}


def test_what_cannot_be_drawn_is_said(data: ReportData) -> None:
    (picture,) = data.gallery
    why = replace(data, gallery=(replace(picture, drawn=None),), why_not_drawn="it is <gone>")
    html = render_report(why)
    assert len(ParsedPage(html).addresses) == 10
    assert "Nothing is drawn from codes: it is &lt;gone&gt;." in " ".join(html.split())
    assert "drawn from the stored codes alone" not in html


def test_a_page_may_be_empty() -> None:
    page = ParsedPage(render_report(ReportData(title="Nothing yet")))
    assert page.ids == set()
    assert "Nothing yet" in page.text


def test_the_page_shows_the_numbers(data: ReportData) -> None:
    text = " ".join(ParsedPage(render_report(data)).text.split())
    assert "All 2,875 rows are in exactly one state" in text
    assert "500 20, 503 5" in text
    assert "select.size: min_side >= 64 -> min_side >= 128" in text
    assert "selected 3, tokens 2" in text
    assert "subset 1,200 2,610 400,000 12 min 0.42" in text
    assert "Hours of GPUs have no price" in text
    assert "2,610 of 2,850 pairs (91.6%) pass every rule" in text
    assert "25 of 2,000 rows (1.2%) of 9 of 40 hosts" in text
    assert "50.0% of 50" in text
    assert "slow.example 20 80.0%" in text
    assert "and 2 more" in text
    assert "matches_caption passes ≥ 0.35" in text
    assert "1,234 pairs have no value" in text
    assert "0.35012 kept" in text
    assert "none of the pairs that were looked at" in text
    assert "90 of 2,850 pairs (3.2%) are not the first of their cluster" in text
    assert "9 pairs, 7 of them not shown" in text
    assert "coco: 1 pair " in text
    assert "9 of 64 patches" in text
    assert text.count("as expected") == 1
    assert text.count("not met") == 1
    assert data.codebook is not None
    assert f"{data.codebook.num_used} of 256" in text
    assert f"{data.samples[0].truth}" in text


def test_text_from_a_corpus_cannot_become_markup() -> None:
    evil = "<script>alert(1)</script>"
    state = LedgerState(state=evil, num_rows=1, reasons={evil: 1})
    finding = Finding(what=evil, found=evil, expected=evil, note=evil)
    curve = TrainingCurve(
        title=evil,
        value_label=evil,
        lines=(CurveLine(name=evil, steps=np.arange(3), values=np.arange(3.0)),),
    )
    html = render_report(
        ReportData(title=evil, findings=(finding,), states=(state,), curves=(curve,))
    )
    assert "<script" not in html
    assert "script" not in ParsedPage(html).tags


def test_what_was_sampled_is_said_and_what_was_not_is_not(data: ReportData) -> None:
    part = Sample(num_read=200, num_all=98_765)
    sampled = replace(
        data, ledger_sample=part, pair_sample=part, picture_sample=part, token_sample=part
    )
    told = "200 of 98,765 shards, spread evenly"
    assert " ".join(ParsedPage(render_report(sampled)).text.split()).count(told) == 9
    assert "spread evenly" not in render_report(data)


@pytest.mark.parametrize(
    ("part", "whole", "told"),
    [(0, 9, "0.0%"), (1, 9000, "<0.1%"), (8999, 9000, ">99.9%"), (9, 9, "100.0%"), (1, 8, "12.5%")],
)
def test_a_share_that_is_not_nothing_does_not_read_as_nothing(
    part: int, whole: int, told: str
) -> None:
    states = (
        LedgerState(state="empty", num_rows=part),
        LedgerState(state="ok", num_rows=whole - part),
    )
    assert told in ParsedPage(render_report(ReportData(title="t", states=states))).text


def test_perplexity_counts_evenly_used_codes() -> None:
    assert CodebookUsage(counts=np.full(100, 7)).perplexity == pytest.approx(100)
    half = CodebookUsage(counts=np.array([5, 5, 0, 0]))
    assert half.perplexity == pytest.approx(2)
    assert half.num_used == 2
    with pytest.raises(ValueError, match="no code"):
        CodebookUsage(counts=np.zeros(4, int))


def test_writing_replaces_the_page_whole(data: ReportData, tmp_path: Path) -> None:
    path = write_report(tmp_path / "new" / "report.html", data)
    write_report(path, replace(data, title="Second"))
    assert "<h1>Second</h1>" in path.read_text(encoding="utf-8")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]


def test_a_page_that_cannot_be_written_is_one_clear_error(data: ReportData, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="cannot write"):
        write_report(tmp_path / "file" / "report.html", data)


def test_a_broken_picture_is_one_clear_error(data: ReportData) -> None:
    broken = replace(data.gallery[0], image=b"no picture")
    with pytest.raises(SourceError, match="cannot be decoded"):
        render_report(replace(data, gallery=(broken,)))
