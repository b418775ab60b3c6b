"""Whatever is wrong in a corpus.yaml is named, with its place; what is right is read as it is."""

from pathlib import Path

import pytest
from pydantic import ValidationError

from schemas.declaration import Declaration, Fetch, load_declaration, parse_declaration, resolve
from schemas.errors import DeclarationError
from schemas.storage import Store

SMALLEST = "sources:\n  - {name: a, urls: list.csv}\n"

WHOLE = """\
sources:
  - {name: laion, urls: "s3://lists/laion-*.parquet", columns: {url: LINK, caption: ALT}}
  - {name: old, tars: "tars/*.tar"}
  - {name: own, folder: photos}
  - {name: books, text: "s3://books/*.jsonl.gz"}
fetch: {rows_per_shard: 500, timeout_seconds: 7.5, retries: 0, allow_private_addresses: true}
images: {resize: keep_ratio, max_side: 256, quality: 90}
signals: {clip: {model: ViT-B-32, pretrained: laion2b_s34b_b79k}}
select:
  large_enough: "min_side >= 200 and aspect <= 3"
  matches_caption: "clip_score >= 0.28"
unique: {by: cluster, prefer: first}
split: {validation: 0.005}
tokenizer: s3://artifacts/tokenizer-v2
text_tokenizer: tokenizer.json
"""


def test_a_whole_declaration_is_read() -> None:
    found = parse_declaration(WHOLE)
    assert [source.kind for source in found.sources] == ["urls", "tars", "folder", "text"]
    assert [source.location for source in found.sources][1:3] == ["tars/*.tar", "photos"]
    assert found.source("laion").columns.url == "LINK"
    assert found.fetch == Fetch(
        rows_per_shard=500, timeout_seconds=7.5, retries=0, allow_private_addresses=True
    )
    assert found.images.max_side == 256
    assert found.signals.names == ["image", "caption", "clip"]
    assert list(found.select) == ["large_enough", "matches_caption"]  # rules keep their order
    assert found.unique is not None
    assert found.split.validation == 0.005
    assert (found.tokenizer, found.text_tokenizer) == (
        "s3://artifacts/tokenizer-v2",
        "tokenizer.json",
    )
    assert found.has_images


def test_what_is_left_out_has_a_default() -> None:
    found = parse_declaration(SMALLEST)
    assert found.fetch == Fetch()
    assert not found.fetch.allow_private_addresses
    assert found.signals.names == ["image", "caption"]
    assert (found.select, found.unique, found.split.validation) == ({}, None, 0.0)
    assert (found.tokenizer, found.text_tokenizer) == (None, None)
    text_only = parse_declaration("sources: [{name: b, text: '*.txt'}]")
    assert not text_only.has_images


def test_a_declaration_does_not_change() -> None:
    found = parse_declaration(SMALLEST)
    with pytest.raises(ValidationError, match="frozen"):
        setattr(found.fetch, "retries", 9)  # noqa: B010 (the types forbid it as well)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        # A misspelt key: where, which, and the nearest.
        ("fetch: {retires: 3}\n", "corpus.yaml:3: unknown key `fetch.retires`; did you mean `retr"),
        ("tokeniser: x\n", "corpus.yaml:3: unknown key `tokeniser`; did you mean `tokenizer`?"),
        (
            "signals:\n  clip:\n    model: m\n    pretraned: p\n",
            "yaml:6: unknown key `signals.clip.",
        ),
        ("images:\n  max_side: 9\n", "corpus.yaml:4: `images.max_side`: Input should be greater"),
        ("images: {Quality: 9}\n", "unknown key `images.Quality`; did you mean `quality`?"),
        ("split: {zzz: 1}\n", "unknown key `split.zzz`; valid keys are validation"),
        ("zzz: 1\n", "unknown key `zzz`; valid keys are about, decontaminate, duplicates, fetch"),
        # Wrong types and ranges, with what was found.
        ("fetch: 5\n", "corpus.yaml:3: `fetch`: must be a mapping, got 5"),
        ("resources: {encode: {gpu: 1}}\n", "key `resources.encode.gpu`; did you mean `gpus`?"),
        ("resources: {encode: {gpus: 1.5}}\n", "must be a whole number, or a share of one GPU"),
        ("resources: {fetch: {custom: {CPU: 1}}}\n", "CPU is Ray's own: use `cpus`"),
        ("resources: {fetch: {custom: {spot: 0}}}\n", "`resources.fetch.custom.spot`: Input"),
        ("resources: {fetch: {cpus: 0}}\n", "a worker that holds nothing needs `workers`"),
        ("fetch:\n  timeout_seconds: soon\n", "yaml:4: `fetch.timeout_seconds`: Input should be a"),
        ("fetch: {timeout_seconds: .inf}\n", "`fetch.timeout_seconds`: Input should be a finite"),
        ("fetch: {proxy: 'socks5://h:1'}\n", "`fetch.proxy`: must be http://HOST:PORT"),
        ("fetch: {proxy: 'http://h'}\n", "`fetch.proxy`: must be http://HOST:PORT"),
        ("fetch: {proxy: 'http://u:p@h:1'}\n", "`fetch.proxy`: must be http://HOST:PORT"),
        ("fetch: {proxy: 'http://h:99999'}\n", "`fetch.proxy`: must be http://HOST:PORT"),
        ("fetch: {contact: me}\n", "`fetch.contact`: must be a mail address or an http"),
        ("fetch: {contact: 'https://x/(y)'}\n", "`fetch.contact`: must be a mail address or an"),
        ('fetch: {user_agent: "a\\nX: 1"}\n', "`fetch.user_agent`: must be plain ASCII text"),
        ("fetch: {retries: 2.5}\n", "`fetch.retries`: Input should be a valid integer"),
        ("split: {validation: 1.5}\n", "`split.validation`: Input should be less than 1, got 1.5"),
        ("select: [a]\n", "corpus.yaml:3: `select`: must be a mapping"),
        ("select: {a: 3}\n", "`select.a`: Input should be a valid string, got 3"),
        ("images: {resize: crop}\n", "`images.resize`: Input should be 'keep_ratio', got 'crop'"),
        ("unique: {by: url}\n", "`unique.by`: Input should be 'cluster', got 'url'"),
        ("signals: {clip: {}}\n", "`signals.clip.model` is missing"),
        ("1: x\n", "corpus.yaml:3: `1`: Keys should be strings"),
        # YAML itself would keep the last of two and say nothing.
        ("split: {}\nselect:\n  a: x\n  a: y\n", "corpus.yaml:6: key `a` is there twice"),
        ("sources: [{name: b, text: t}]\n", "corpus.yaml:3: key `sources` is there twice"),
        ("a: &a [*a]\n", "corpus.yaml:3: unknown key `a`"),  # a node that holds itself
        ("fetch: {retries: 1\n", "corpus.yaml is not valid YAML: .*line 4"),
        ("---\na: 1\n", "corpus.yaml is not valid YAML: expected a single document"),
        ("? [a]\n: b\n", "corpus.yaml is not valid YAML: .*unhashable key"),
    ],
)
def test_a_mistake_is_named_with_its_place(text: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=f"(?s){escape(message)}"):
        parse_declaration(SMALLEST + text)


def test_a_proxy_and_a_contact_are_taken_as_they_are() -> None:
    for proxy in ("http://127.0.0.1:3128", "http://[fd00::1]:8080", "http://proxy.example:80/"):
        assert Fetch(proxy=proxy).proxy == proxy
    for contact in ("me@example.com", "https://example.com/bot?x=1"):
        assert Fetch(contact=contact).contact == contact


def escape(message: str) -> str:
    """A regular expression of a message in which only `.*` is special."""
    parts = (part.replace("[", r"\[").replace("?", r"\?") for part in message.split(".*"))
    return ".*".join(parts)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a mapping that begins with `sources:`; it is empty"),
        ("5", "it holds int"),
        ("- a", "it holds list"),
        ("fetch: {}", "corpus.yaml: `sources` is missing"),
        ("sources: []", "corpus.yaml:1: `sources`: must not be empty"),
        ("sources: list.csv", "`sources`: must be a list, got 'list.csv'"),
        ("sources:\n  - list.csv", r"corpus.yaml:2: `sources\[0\]`: must be a mapping"),
        ("sources:\n- urls: x", r"corpus.yaml:2: `sources\[0\].name` is missing"),
        ("sources:\n- {name: a/b, urls: x}", r"`sources\[0\].name`: .*pattern"),
        ("sources:\n- {name: .., urls: x}", r"`sources\[0\].name`: .*pattern"),
        ("sources:\n- {name: a, url: x}", r"unknown key `sources\[0\].url`; did you mean `urls`"),
        ("sources:\n- name: a\n  urls: x\n  tars: y", "exactly one of .* it has urls and tars"),
        ("sources:\n- name: a", "'a' must have exactly one of .* it has none of them"),
        ("sources:\n- {name: a, urls: x}\n- {name: a, text: y}", "two sources are called 'a'"),
        ("sources:\n- {name: a, urls: x, columns: {URL: u}}", r"`sources\[0\].columns.URL`; did"),
    ],
)
def test_a_mistake_in_the_sources_is_named(text: str, message: str) -> None:
    with pytest.raises(DeclarationError, match=message):
        parse_declaration(text)


def test_all_mistakes_are_told_at_once_a_line_each() -> None:
    text = f"{SMALLEST}fetch:\n  retires: 3\n  max_bytes: 0\nsplit: {{validation: x}}\n"
    with pytest.raises(DeclarationError) as caught:
        parse_declaration(text, place="s3://bucket/corpus.yaml")
    lines = str(caught.value).splitlines()
    assert sorted(line.split(": ")[0] for line in lines) == [
        "s3://bucket/corpus.yaml:4",
        "s3://bucket/corpus.yaml:5",
        "s3://bucket/corpus.yaml:6",
    ]


def test_a_corpus_has_its_declaration_in_its_root(tmp_path: Path) -> None:
    store = Store(tmp_path)
    with pytest.raises(DeclarationError, match=r"corpus\.yaml does not exist: `pixelese init"):
        load_declaration(store)
    store.write("corpus.yaml", SMALLEST.encode())
    declaration, text = load_declaration(store)
    assert text == SMALLEST
    assert isinstance(declaration, Declaration)
    store.write("corpus.yaml", b"sources: \xff")
    with pytest.raises(DeclarationError, match="is not UTF-8"):
        load_declaration(store)


@pytest.mark.parametrize(
    ("location", "resolved"),
    [
        ("lists/*.csv", "s3://bucket/corpus/lists/*.csv"),
        ("/data/list.csv", "/data/list.csv"),
        ("s3://other/x", "s3://other/x"),
        ("local-dir:clip", "local-dir:s3://bucket/corpus/clip"),
        ("local-dir:/models/clip", "local-dir:/models/clip"),
    ],
)
def test_relative_places_start_at_the_corpus_root(location: str, resolved: str, s3: str) -> None:
    assert resolve(location, Store("s3://bucket/corpus/")) == resolved
