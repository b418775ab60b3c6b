"""A version's dataset card: a README as Hugging Face reads it, with a YAML header.

Everything in it follows from the version, its limits as well: what no rule looked at, what was not
compared, what is lost in codes. What the card cannot know (whose the pictures are, what they show)
it says it does not know.
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import yaml

from pipeline.rules import columns_read, compile_rules
from pipeline.version_facts import TokenTotals, VersionFacts
from schemas.declaration import Declaration
from schemas.ledger import State
from schemas.tokens import TokenShardHeader
from schemas.vocabulary import Vocabulary

HUB_LICENSES = re.compile(
    r"apache-2\.0|mit|unlicense|cc0-1\.0|cc-by(-nc)?(-sa|-nd)?-[234]\.[05]"
    r"|odc-by|odbl|pddl|cdla-(permissive|sharing)-[12]\.0|gfdl"
)
"""Of the names that the hub knows those of data; any other is `other` with a name."""
SIZES = (
    (1_000, "n<1K"),
    (10_000, "1K<n<10K"),
    (100_000, "10K<n<100K"),
    (1_000_000, "100K<n<1M"),
    (10_000_000, "1M<n<10M"),
    (100_000_000, "10M<n<100M"),
    (1_000_000_000, "100M<n<1B"),
    (10_000_000_000, "1B<n<10B"),
    (100_000_000_000, "10B<n<100B"),
    (1_000_000_000_000, "100B<n<1T"),
)
SIGNAL_TEXTS = {
    "image": "size, digests and perceptual hash of the picture",
    "caption": "length and repetition of the caption",
    "clip": "how well caption and picture fit (CLIP)",
    "embedding": "CLIP's embedding of the picture",
    "aesthetic": "how pleasing the picture is said to be",
    "nsfw": "how likely the picture is unsafe",
    "watermark": "how likely the picture is watermarked",
    "texture": "sharpness, edges and entropy of the picture",
    "language": "the caption's language",
}


def dataset_card(facts: VersionFacts, *, name: str, description: str) -> bytes:
    """The card of a version, UTF-8."""
    sections = [
        f"# {name}, version {facts.number}",
        description,
        *_warning(facts),
        _glance(facts),
        *_contents(facts),
        _sources(facts),
        *_selection(facts),
        _making(facts),
        _limits(facts),
        _removal(facts),
        *_citation(facts),
        _files(facts),
    ]
    header = yaml.safe_dump(_header(facts, name), sort_keys=False, allow_unicode=True)
    body = "\n\n".join(sections)
    return f"---\n{header}---\n\n{body}\n".encode()


def _header(facts: VersionFacts, name: str) -> dict[str, Any]:
    """What the hub reads."""
    total = facts.total
    header: dict[str, Any] = {"pretty_name": name, **_license(facts.declaration.about.license)}
    with_images = facts.declaration.has_images
    header["task_categories"] = (
        ["image-to-text", "text-to-image"] if with_images else ["text-generation"]
    )
    header["size_categories"] = [
        next((label for limit, label in SIZES if total.num_records < limit), "n>1T")
    ]
    header["tags"] = ["pixelese", "pre-tokenized", *(["image-text"] if with_images else [])]
    if facts.header is not None:
        header["dataset_info"] = {
            "features": _features(facts.header),
            "splits": [
                {
                    "name": split.split,
                    "num_bytes": split.num_bytes,
                    "num_examples": split.num_records,
                }
                for split in facts.splits
            ],
            "dataset_size": total.num_bytes,
        }
    return header


def _license(declared: str | None) -> dict[str, str]:
    if declared is None:
        return {"license": "unknown"}
    if HUB_LICENSES.fullmatch(declared.lower()):
        return {"license": declared.lower()}
    link = {"license_link": declared} if declared.startswith(("http://", "https://")) else {}
    return {"license": "other", "license_name": declared, **link}


def _features(header: TokenShardHeader) -> list[dict[str, str]]:
    return [
        {"name": "key", "dtype": "string"},
        {"name": "text", "sequence": header.text_dtype.__name__},
        {"name": "image", "sequence": header.image_dtype.__name__},
    ]


def _warning(facts: VersionFacts) -> list[str]:
    if facts.version.complete:
        return []
    return ["> This version is not complete: some stages are missing, and it cannot be trained on."]


def _glance(facts: VersionFacts) -> str:
    total = facts.total
    published = facts.version.time.replace("T", " ").replace("+00:00", " UTC")
    rows = [
        ("published", published),
        ("license", facts.declaration.about.license or "none declared"),
        ("records", f"{total.num_records:,}"),
        ("with an image", f"{total.num_images:,}"),
        ("text ids", f"{total.num_text_ids:,}"),
        ("image words", _words(total)),
        ("token shards", f"{total.num_shards:,}, {size(total.num_bytes)}"),
    ]
    if facts.pair_bytes:
        rows.append(("stored pictures and captions", size(facts.pair_bytes)))
    if facts.version.metadata.get("note"):
        rows.append(("note", facts.version.metadata["note"]))
    return "## At a glance\n\n" + _table(("", ""), rows)


def _words(total: TokenTotals) -> str:
    if not total.num_images:
        return "0"
    mean = total.num_image_words / total.num_images
    return (
        f"{total.num_image_words:,} ({total.num_codes:,} codes, {total.num_places:,} places), "
        f"{mean:.1f} an image"
    )


def _contents(facts: VersionFacts) -> list[str]:
    header = facts.header
    if header is None:
        return []
    columns = [
        ("`key`", "string", "the record's name, a digest of its address and caption"),
        ("`text`", f"list of {header.text_dtype.__name__}", "text ids, without special tokens"),
    ]
    if header.codebook_size:
        columns.append(
            (
                "`image`",
                f"list of {header.image_dtype.__name__}",
                f"the image sentence: places 0..{header.num_patches - 1} of a grid of "
                f"{header.grid} x {header.grid}, codes {header.num_patches}.."
                f"{header.num_patches + header.codebook_size - 1}",
            )
        )
    splits = [
        (
            split.split,
            f"{split.num_records:,}",
            f"{split.num_images:,}",
            f"{split.num_text_ids:,}",
            f"{split.num_image_words:,}",
            size(split.num_bytes),
        )
        for split in facts.splits
    ]
    heads = ("split", "records", "images", "text ids", "image words", "bytes")
    return [
        "## What is in it\n\nA row is an image-text pair, or a document. Pictures and captions are "
        "stored as integers.\n\n" + _table(("column", "type", "what it is"), columns),
        "### Splits\n\n" + _table(heads, splits, right=heads[1:]),
        f"### Reading it\n\n{_reading(facts.number, header)}",
    ]


def _reading(number: int, header: TokenShardHeader) -> str:
    words = Vocabulary(
        num_text_ids=header.num_text_ids,
        num_places=header.num_patches,
        codebook_size=header.codebook_size,
    )
    layout = (
        f"In the joint vocabulary of {words.size:,} ids text comes first (0..{words.bos - 1}), "
        f"then `[BOS]` {words.bos}, `[EOS]` {words.eos}, `[IMG]` {words.image_start}, `[/IMG]` "
        f"{words.image_end} and `[PAD]` {words.pad}"
    )
    if header.codebook_size:
        layout += f", then image words from {words.image_offset}, codes from {words.code_offset}"
    return (
        "```python\nfrom trainer.stream import TokenStream\n\n"
        f'stream = TokenStream.open("CORPUS@v{number}", sequence_length=2048, '
        f"global_batch_size=256)\n```\n\n{layout}."
    )


def _sources(facts: VersionFacts) -> str:
    heads = ("source", "kind", "input rows", "usable", "kept")
    rows = [
        (
            source.name,
            source.kind,
            f"{source.num_rows:,}",
            f"{source.num_usable:,}",
            f"{source.num_kept:,}",
        )
        for source in facts.sources
    ]
    return "\n\n".join(
        ["## Where it comes from", _table(heads, rows, right=heads[2:]), *_states(facts.states)]
    )


def _states(states: Mapping[str, int]) -> list[str]:
    """Where input rows ended, unless all are usable."""
    if not states.keys() - {State.OK}:
        return []
    order = sorted(states.items(), key=lambda item: (item[0] != State.OK, -item[1], item[0]))
    total = sum(states.values())
    rows = [(f"`{name}`", f"{count:,}", share(count, total)) for name, count in order]
    heads = ("state", "rows", "share")
    return [
        f"Each of the {total:,} input rows is in one state, that of its newest attempt:",
        _table(heads, rows, right=heads[1:]),
    ]


def _selection(facts: VersionFacts) -> list[str]:
    funnel, declared = facts.funnel, facts.declaration.select
    if not funnel.num_records:
        return []
    rows = [
        (
            step.name,
            f"`{_cell(declared[step.name])}`" if step.name in declared else _OWN_STEPS[step.name],
            "" if step.alone is None else f"{step.alone:,}",
            f"{step.in_order:,}",
            f"{step.remaining:,}",
        )
        for step in funnel.steps()
        if step.name in declared or step.in_order
    ]
    text = (
        f"## What was kept\n\nOf {funnel.num_records:,} usable records {funnel.num_kept:,} are in"
    )
    text += f" this version ({share(funnel.num_kept, funnel.num_records)})."
    if not rows:
        return [f"{text} No rule dropped any."]
    heads = ("step", "keeps what", "drops alone", "drops in order", "left")
    return [f"{text}\n\n{_table(heads, rows, right=heads[2:])}"]


_OWN_STEPS = {
    "removed": "nobody asked to have removed",
    "decontaminate": "is in no evaluation set",
    "unique": "is the first of its duplicate cluster",
}


def _making(facts: VersionFacts) -> str:
    declared = facts.declaration
    lines = []
    if declared.has_images:
        images = declared.images
        lines.append(
            f"Pictures are stored as JPEG (quality {images.quality}), their longer side at most "
            f"{images.max_side} pixels."
        )
    if any(source.kind == "urls" for source in declared.sources):
        lines.append(_fetching(declared))
    if declared.has_images:
        lines += [f"Measured: `{n}`, {SIGNAL_TEXTS[n]}." for n in declared.signals.names]
        distance = declared.duplicates.distance
        near = f", or perceptual hashes that differ in at most {distance} of 64 bits"
        lines.append(
            "Two pictures count as duplicates with equal bytes or equal pixels"
            f"{near if distance else ''}."
        )
    sets = ", ".join(item.name for item in declared.decontaminate)
    if sets:
        lines.append(f"Pictures of these evaluation sets were looked for: {sets}.")
    lines += [f"Image tokenizer: `{item}`." for item in facts.image_tokenizers]
    lines += [f"Text tokenizer: `{item}`." for item in facts.text_tokenizers]
    lines += [f"Encoded with: {item}." for item in facts.environments]
    return "## How it was made\n\n" + "\n".join(f"- {line}" for line in lines)


def _fetching(declared: Declaration) -> str:
    fetch = declared.fetch
    told = {
        "X-Robots-Tag was honoured": fetch.respect_opt_out,
        "X-Robots-Tag was not honoured": not fetch.respect_opt_out,
        "robots.txt was honoured": fetch.respect_robots_txt,
        "robots.txt was not asked": not fetch.respect_robots_txt,
        "domains were blocked by a list": fetch.blocked_domains is not None,
        "content was blocked by a list of hashes": fetch.blocked_hashes is not None,
    }
    said = [text for text, holds in told.items() if holds]
    return f"Pictures were fetched from the web: {', '.join(said)}."


def _limits(facts: VersionFacts) -> str:
    declared = facts.declaration
    columns = columns_read(compile_rules(declared))
    of_web = any(source.kind == "urls" for source in declared.sources)
    limits = {
        "No license is declared. Pictures and texts belong to those who made them.": (
            declared.about.license is None
        ),
        "Pictures and captions were taken from the web as they were found. They may show or name "
        "people, may be wrong, offensive or biased, and each has its own owner.": of_web,
        "No rule looks at whether a picture is unsafe (`nsfw_score`).": (
            declared.has_images and "nsfw_score" not in columns
        ),
        "No rule looks at whether caption and picture fit (`clip_score`).": (
            declared.has_images and "clip_score" not in columns
        ),
        "Duplicate pictures are marked, but not dropped.": (
            declared.has_images and declared.unique is None
        ),
        "It was compared with no evaluation set.": (
            declared.has_images and not declared.decontaminate
        ),
        "Documents are neither filtered by content nor compared with each other.": any(
            source.kind == "text" for source in declared.sources
        ),
        "It has no validation split.": not declared.split.validation,
    }
    told = [text for text, holds in limits.items() if holds]
    told += _limits_of_tokens(facts.header, facts.total)
    return "## Known limits\n\n" + "\n".join(f"- {text}" for text in told)


def _limits_of_tokens(header: TokenShardHeader | None, total: TokenTotals) -> Iterator[str]:
    if header is None:
        return
    if total.num_images:
        kept = total.num_codes / total.num_images
        yield (
            f"Of the {header.num_patches} patches of a picture {kept:.1f} are kept in the mean, "
            f"each as one of {header.codebook_size:,} codes: what was dropped, and detail within a "
            "patch, cannot be had back from tokens."
        )
    yield "Ids mean nothing without the tokenizers of the fingerprints above."


def _removal(facts: VersionFacts) -> str:
    about, fetch = facts.declaration.about, facts.declaration.fetch
    contact = about.contact or fetch.contact
    whom = f"Write to {contact}" if contact else "Ask whoever gave you this corpus"
    return (
        "## To have something removed\n\n"
        f"{whom}, with the address of a picture or the picture itself. It is then left out of the "
        "next version by its content, whatever the address, and does not come back with a later "
        "list or an older version."
    )


def _citation(facts: VersionFacts) -> list[str]:
    citation = facts.declaration.about.citation
    return [] if citation is None else [f"## Citation\n\n```\n{citation.strip()}\n```"]


def _files(facts: VersionFacts) -> str:
    name = f"v{facts.number:06d}"
    return (
        "## Files\n\n"
        f"`catalog/{name}.parquet` (sha256 `{facts.catalog_sha256}`) has a row for every file of "
        f"this version, with its digest and counts; `catalog/{name}.croissant.json` says the same "
        "to machines. All paths are relative to the corpus' root."
    )


def _table(
    heads: Sequence[str], rows: Iterable[Sequence[str]], *, right: Sequence[str] = ()
) -> str:
    marks = ["---:" if head in right else "---" for head in heads]
    lines = [heads, marks, *([_cell(item) for item in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    """Text that a table's cell can hold."""
    return " ".join(text.replace("\\|", "|").replace("|", "\\|").split())


def share(part: int, whole: int) -> str:
    """A share that is not 0 does not read as 0, and one that is not all not as 100 %."""
    value = part / max(whole, 1)
    if 0 < value < 0.001:
        return "<0.1 %"
    return ">99.9 %" if 0.9995 <= value < 1 else f"{value:.1%}".replace("%", " %")


def size(num_bytes: float) -> str:
    """`512 B`, `3.4 MB`: powers of a thousand."""
    for unit in ("B", "kB", "MB", "GB"):
        if num_bytes < 1000:
            return f"{num_bytes:.0f} {unit}" if unit == "B" else f"{num_bytes:.1f} {unit}"
        num_bytes /= 1000
    return f"{num_bytes:,.1f} TB"
