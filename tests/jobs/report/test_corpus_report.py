"""What a report promises to tell of a version: its ledger, hosts, thresholds and duplicates."""

from dataclasses import replace
from pathlib import Path

import pytest

from jobs import corpus_report as module
from jobs.corpus_report import corpus_report
from jobs.report import ledgers
from jobs.report.data import ReportData
from jobs.report.page import render_report
from tests.jobs.report.parsed import ParsedPage
from tests.pipeline.written import Line, Written, replay_parts, write_version

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)> & \"quoted\" 'caption'"


def report(made: Written) -> ReportData:
    made.publish(complete=all(row.kind != "tokens" for row in made.rows))
    return corpus_report(made.store.url)


def lines(host: str, num: int, **facts: object) -> list[Line]:
    return [
        Line(url=f"https://{host}/{facts.get('state', 'ok')}/{number}", **facts)  # type: ignore[arg-type]
        for number in range(num)
    ]


def test_failures_are_told_by_host_and_by_state(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    made.add(
        [
            *lines("good.example", 30),
            *lines("slow.example", 6, state="timeout", reason="deadline"),
            *lines("slow.example", 2, state="http_5xx", reason="status_503"),
            *lines("user:secret@slow.example:8080", 1, state="timeout", reason="idle"),
            *lines("gone.example", 4, state="http_4xx", reason="status_404"),
            *lines("[2001:db8::1]:99", 1, state="timeout", reason="deadline"),
            *lines("good.example", 3, state="duplicate_row", reason="same_row", decided=True),
            Line(url="nothing", state="bad_row", reason="bad_url", decided=True),
        ],
        upto="pairs",
    )
    hosts = report(made).hosts
    assert hosts is not None
    assert (hosts.num_rows, hosts.num_failed) == (44, 14)
    assert (hosts.num_hosts, hosts.num_failing_hosts) == (4, 3)
    assert [(host.host, host.num_failed, host.num_rows) for host in hosts.worst] == [
        ("slow.example", 9, 9),
        ("gone.example", 4, 4),
        ("[2001:db8::1]", 1, 1),
    ]
    assert hosts.worst[0].failures == {"timeout": 7, "http_5xx": 2}
    (timeouts, gone, broken) = hosts.by_state
    assert (timeouts.state, timeouts.num_rows) == ("timeout", 8)
    assert timeouts.hosts == {"slow.example": 7, "[2001:db8::1]": 1}
    assert timeouts.reasons == {"deadline": 7, "idle": 1}
    assert (gone.state, broken.state) == ("http_4xx", "http_5xx")


def test_only_the_worst_hosts_are_named(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    failing = [
        line
        for number in range(30)
        for line in lines(f"h{number:02d}.example", 1 + number % 3, state="empty", reason="empty")
    ]
    made.add([*lines("good.example", 2), *failing], upto="pairs")
    hosts = report(made).hosts
    assert hosts is not None
    assert len(hosts.worst) == 20
    assert hosts.num_failing_hosts == 30
    failed = [host.num_failed for host in hosts.worst]
    assert failed == sorted(failed, reverse=True)
    assert [host.host for host in hosts.worst][:2] == ["h02.example", "h05.example"]
    (state,) = hosts.by_state
    assert state.num_hosts == 30
    assert len(state.hosts) == ledgers.HOSTS_A_STATE


def test_the_newest_attempt_of_a_row_counts_everywhere(tmp_path: Path) -> None:
    made = write_version(tmp_path)
    slow = lines("slow.example", 5, state="timeout", reason="deadline")
    repeat = replace(slow[0], state="duplicate_row", reason="same_row", decided=True)
    made.add([*lines("good.example", 5), *slow, repeat], upto="pairs")
    again = [replace(line, state="ok", reason=None, generation=1) for line in slow[:3]]
    again.append(replace(slow[3], state="http_4xx", reason="status_404", generation=1))
    made.add(again, upto="pairs", parts=replay_parts(1, timeout=4))
    data = report(made)
    states = {state.state: state.num_rows for state in data.states}
    assert states == {"ok": 8, "timeout": 1, "http_4xx": 1, "duplicate_row": 1}
    reasons = {state.state: dict(state.reasons) for state in data.states}
    assert reasons["timeout"] == {"deadline": 1}
    assert reasons["http_4xx"] == {"status_404": 1}
    assert data.hosts is not None
    assert (data.hosts.num_rows, data.hosts.num_failed) == (10, 2)


def test_archives_have_no_hosts(tmp_path: Path) -> None:
    made = write_version(tmp_path, sources=[{"name": "tars", "tars": "*.tar"}])
    made.add([Line(url="a.tar#1.jpg"), Line(url="a.tar#2.jpg", state="empty")], source="tars")
    data = report(made)
    assert data.hosts is None
    assert {state.state for state in data.states} == {"ok", "empty"}


def scored(number: int, score: float | None, **facts: object) -> Line:
    facts.setdefault("image", number)
    facts.setdefault("caption", f"picture number {number}")
    return Line(
        url=f"https://a.example/{number}",
        signals={"clip_score": score},
        **facts,  # type: ignore[arg-type]
    )


@pytest.fixture
def judged(tmp_path: Path) -> Written:
    made = write_version(
        tmp_path,
        signals={"clip": {"model": "any"}},
        select={"matches": "0.3 <= clip_score and caption_words between 2 and 9"},
        unique={"by": "cluster"},
    )
    scores = [0.1, 0.2, 0.26, 0.27, 0.28, 0.29, 0.3, 0.31, 0.32, 0.33, 0.34, 0.6]
    pairs = [
        scored(number, score, dropped_by="matches" if score < 0.3 else None)
        for number, score in enumerate(scores)
    ]
    pairs.append(scored(20, 0.295, image=5, dropped_by="matches"))  # the picture of number 5
    pairs.append(scored(21, None, dropped_by="matches"))
    pairs.append(scored(22, 0.301, caption=EVIL, dropped_by="unique"))
    made.add(pairs[::2])
    made.add(pairs[1::2])
    return made


def test_each_threshold_shows_the_nearest_pairs_on_both_sides(judged: Written) -> None:
    edges = {edge.threshold: edge for edge in report(judged).edges}
    assert set(edges) == {"clip_score >= 0.3", "caption_words >= 2", "caption_words <= 9"}
    edge = edges["clip_score >= 0.3"]
    assert [round(item.value, 3) for item in edge.passing] == [0.3, 0.301, 0.31, 0.32]
    # One picture is shown once, at its nearest; a pair without a score is on no side.
    assert [round(item.value, 3) for item in edge.failing] == [0.295, 0.28, 0.27, 0.26]
    assert [item.fate for item in edge.passing][:2] == ["kept", "dropped by unique"]
    assert {item.fate for item in edge.failing} == {"dropped by matches"}
    assert edge.failing[0].caption == "picture number 20"
    assert edges["caption_words <= 9"].failing == ()


def test_histograms_carry_the_thresholds_of_all_rules(judged: Written) -> None:
    found = {signal.name: signal for signal in report(judged).signals}
    marks = [(mark.value, mark.sign, mark.rule) for mark in found["caption_words"].marks]
    assert marks == [(2, ">=", "matches"), (9, "<=", "matches")]
    assert [mark.value for mark in found["clip_score"].marks] == [0.3]
    assert found["clip_score"].num_unknown == 1
    assert len(found["clip_score"].values) == 14
    assert "phash" not in found
    assert "min_side" not in found  # the same for all, and no rule reads it


def test_a_version_before_its_selection_has_edges_without_fates(tmp_path: Path) -> None:
    made = write_version(
        tmp_path, signals={"clip": {"model": "any"}}, select={"matches": "clip_score > 0.3"}
    )
    made.add([scored(1, 0.2), scored(2, 0.4)], upto="signals")
    data = report(made)
    (edge,) = data.edges
    assert {item.fate for item in (*edge.passing, *edge.failing)} == {""}
    assert data.funnel == ()
    assert render_report(data)


def test_a_version_of_pairs_alone_and_one_without_pictures_have_a_page(tmp_path: Path) -> None:
    made = write_version(tmp_path / "pairs", select={"large": "min_side >= 8"})
    made.add(lines("a.example", 2), upto="pairs")
    made.add(lines("dead.example", 2, state="dns_error", reason="no_such_host"), upto="pairs")
    data = report(made)
    assert (data.signals, data.edges, data.duplicates, data.gallery) == ((), (), None, ())
    assert "dead.example" in render_report(data)
    only_dead = write_version(tmp_path / "dead")
    only_dead.add(lines("dead.example", 2, state="empty", reason="empty"))
    assert "dead.example" in render_report(report(only_dead))


def clustered(made: Written, size: int, *, number: int, **facts: object) -> str:
    """A cluster over two shards; the leader's key."""
    leader = Line(url=f"https://c{number}.example/0", image=100 * number)
    made.add([leader])
    made.add(
        [
            Line(
                url=f"https://c{number}.example/{place}",
                image=100 * number + place,
                cluster=leader.key,
                **facts,  # type: ignore[arg-type]
            )
            for place in range(1, size)
        ]
    )
    return leader.key


def test_clusters_are_shown_side_by_side_with_who_was_kept(tmp_path: Path) -> None:
    made = write_version(tmp_path, unique={"by": "cluster"})
    near = clustered(*(made, 2), number=1, distance=4, relation="perceptual", dropped_by="unique")
    same = clustered(*(made, 9), number=2, relation="bytes", dropped_by="unique")
    made.add([Line(url="https://alone.example/1", image=7)])
    found = report(made).duplicates
    assert found is not None
    assert (found.num_pairs, found.num_later) == (12, 9)
    assert found.relations == {"bytes": 8, "perceptual": 1}
    assert found.distances == {4: 1}
    (first, second) = found.clusters  # the least alike first
    assert [(m.key, m.relation, m.distance, m.fate) for m in first.members[:1]] == [
        (near, "first", 0, "kept")
    ]
    assert (first.members[1].distance, first.members[1].fate) == (4, "dropped by unique")
    assert (second.members[0].key, second.num_members, len(second.members)) == (same, 9, 6)


def test_hits_of_evaluation_sets_are_counted_and_shown(tmp_path: Path) -> None:
    made = write_version(tmp_path, decontaminate=[{"name": "coco", "hashes": "coco.txt"}])
    hits = [
        scored(number, 0.5, contaminated_by="coco", dropped_by="decontaminate")
        for number in range(8)
    ]
    made.add([*hits, scored(20, 0.5)])
    data = report(made)
    (found,) = data.contamination
    assert (found.evaluation_set, found.num_pairs, len(found.examples)) == ("coco", 8, 6)
    assert {item.fate for item in found.examples} == {"dropped by decontaminate"}
    steps = {rule.name: rule.num_dropped_in_order for rule in data.funnel}
    assert steps == {"decontaminate": 8, "unique": 0}


def test_text_from_the_web_cannot_become_markup(judged: Written) -> None:
    judged.add(
        [Line(url=f"https://h.example/{EVIL}", caption=EVIL, state="timeout", reason="x")],
        upto="pairs",
    )
    html = render_report(report(judged))
    assert "&lt;script&gt;alert(1)" in html
    assert "<script" not in html
    page = ParsedPage(html)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object"})
    assert page.handlers == set()
    assert all(address.startswith("data:image/jpeg;base64,") for address in page.addresses)
    assert EVIL in page.text


def test_a_large_corpus_is_sampled_and_the_page_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MAX_SHARDS", 4)
    monkeypatch.setattr(module, "PICTURE_SHARDS", 2)
    monkeypatch.setattr(ledgers, "MAX_LEDGERS", 3)
    made = write_version(
        tmp_path, signals={"clip": {"model": "any"}}, select={"matches": "clip_score > 0.5"}
    )
    for shard in range(12):
        made.add([scored(shard, shard / 12), *lines(f"h{shard}.example", 1, state="empty")])
    made.publish()
    for row in made.rows:
        assert row.kind != "pairs" or (tmp_path / row.path).is_file()
    data = corpus_report(made.store.url)
    assert (data.ledger_sample.num_read, data.ledger_sample.num_all) == (3, 12)
    assert (data.pair_sample.num_read, data.picture_sample.num_read) == (4, 2)
    assert {state.state: state.num_rows for state in data.states} == {"ok": 12, "empty": 12}
    assert data.hosts is not None
    assert data.hosts.num_failed == 3
    assert len(data.signals[0].values) == 4
    assert sum(len(edge.passing) + len(edge.failing) for edge in data.edges) == 2
    html = " ".join(render_report(data).split())
    assert "3 of 12 ledgers, spread evenly" in html
    assert "2 of 12 shards, spread evenly" in html
    assert corpus_report(made.store.url).edges == data.edges


def test_the_page_stays_small(judged: Written) -> None:
    html = render_report(report(judged))
    num_pictures = html.count("data:image/jpeg")
    assert num_pictures > 20
    assert len(html) < 60_000 + 12_000 * num_pictures
