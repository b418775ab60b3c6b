"""The study's tables in Markdown: mean and sample deviation over seeds, of what is recorded.

A cell whose runs are not all there says over how many it is.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from benchmarks.study.arms import ARMS, BY_NAME, LENGTH_ARMS, PHOTOS_EMA, QUANTIZER_ARMS, Arm
from jobs.demo.captions import ATTRIBUTES

Record = Mapping[str, Any]
Reader = Callable[[Record], float | None]


def read_path(*path: str) -> Reader:
    """A reader of a value deep in a record."""

    def read(record: Record) -> float | None:
        value: Any = record
        for name in path:
            value = value[name]
        return None if value is None else float(value)

    return read


DEPLOYED = read_path("eval", "reconstruction", "centred", "deployed", "all")
UNQUANTIZED = read_path("eval", "reconstruction", "centred", "unquantized", "all")
USAGE = read_path("eval", "codebook", "codebook_usage")
PERPLEXITY = read_path("eval", "codebook", "codebook_perplexity")
KEPT = read_path("eval", "keep_share", "mean")
CODES = read_path("eval", "words", "codes", "mean")
PLACES = read_path("eval", "words", "places", "mean")


class Results:
    """Records by what a table asks for."""

    def __init__(self, records: Mapping[str, Record]) -> None:
        self.records = records

    def tokenizers(self, arm: Arm) -> list[Record]:
        """Of the arm's tokenizer, a record a seed."""
        name = arm.tokenizer_of or arm.name
        return self._find(kind="tokenizer", arm=name)

    def language(self, arm: Arm, equal: str) -> list[Record]:
        """Of its language models; those of equal tokens where equal pairs took as many steps."""
        found = self._find(kind="language", arm=arm.name, equal=equal)
        return found or self._find(kind="language", arm=arm.name, equal="tokens")

    def _find(self, **wanted: str) -> list[Record]:
        found = [
            record
            for record in self.records.values()
            if all(record.get(name) == value for name, value in wanted.items())
        ]
        return sorted(found, key=lambda record: int(record["seed"]))


def told(records: Sequence[Record], read: Reader, *, digits: int) -> str:
    """`mean ± deviation`; `-` where there is nothing to say."""
    values = [value for value in map(read, records) if value is not None]
    if not values:
        return "-"
    mean = f"{statistics.mean(values):.{digits}f}"
    return f"{mean} ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else mean


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def quantizer_table(results: Results, pictures: str) -> str:
    """Point by point, quantizers at one budget."""
    head = ["quantizer", "seeds", "cosine", "cosine without codes", "usage", "perplexity", "kept"]
    rows = []
    for arm in QUANTIZER_ARMS[pictures]:
        found = results.tokenizers(arm)
        title = "EMA, k-means, restarts (default)" if arm.quantizer == "ema" else arm.title
        rows.append(
            [
                title,
                str(len(found)),
                told(found, DEPLOYED, digits=3),
                told(found, UNQUANTIZED, digits=3),
                told(found, USAGE, digits=3),
                told(found, PERPLEXITY, digits=0),
                told(found, KEPT, digits=3),
            ]
        )
    return table(head, rows)


def length_table(results: Results) -> str:
    """What tokenizers of dynamic and of fixed length write, and how well they rebuild."""
    head = ["arm", "codes", "places", "cosine", "usage", "length ~ objects"]
    rows = []
    for arm in LENGTH_ARMS:
        found = results.tokenizers(arm)
        with_places = arm.places and arm.positions != "none"
        rows.append(
            [
                arm.title,
                told(found, CODES, digits=1),
                told(found, PLACES, digits=1) if with_places else "left out",
                told(found, DEPLOYED, digits=3),
                told(found, USAGE, digits=3),
                told(found, read_path("objects"), digits=2),
            ]
        )
    return table(head, rows)


def language_table(results: Results) -> str:
    """Held-out captions by language models on each arm's words."""
    head = [
        "arm",
        "tokens a pair",
        "loss, equal tokens",
        "loss, equal pairs",
        "loss, another's picture",
        "right, equal tokens",
        "right, equal pairs",
        "right, another's picture",
    ]
    rows = []
    for arm in LENGTH_ARMS:
        tokens, pairs = results.language(arm, "tokens"), results.language(arm, "pairs")
        rows.append(
            [
                arm.title,
                told(tokens, read_path("tokens_per_pair"), digits=1),
                told(tokens, read_path("caption_loss"), digits=3),
                told(pairs, read_path("caption_loss"), digits=3),
                told(tokens, read_path("caption_loss_shuffled"), digits=3),
                told(tokens, read_path("attributes", "all"), digits=3),
                told(pairs, read_path("attributes", "all"), digits=3),
                told(tokens, read_path("attributes_shuffled", "all"), digits=3),
            ]
        )
    return table(head, rows)


def attribute_table(results: Results, *, source: str) -> str:
    """By attribute: `captions` of language models (equal pairs), or a `probe` on codes."""
    rows = []
    for arm in LENGTH_ARMS:
        if source == "probe" and arm.tokenizer_of is not None:
            continue
        captioned = source == "captions"
        found = results.language(arm, "pairs") if captioned else results.tokenizers(arm)
        field = "attributes" if captioned else "probe"
        cells = [told(found, read_path(field, name), digits=2) for name in ATTRIBUTES]
        rows.append([arm.title, *cells])
    return table(["arm", *ATTRIBUTES], rows)


def speed_table(results: Results) -> str:
    """Time of a step and of a pair, each over the default's; empty where it was not measured."""
    speed = results.records.get("speed")
    if speed is None:
        return ""
    head = ["arm", "tokenizer step", "language model step", "pairs a second"]
    names = ("tokenizer_seconds_ratio", "language_seconds_ratio", "pairs_per_second_ratio")
    rows = []
    for arm in ARMS:
        found = speed["arms"].get(arm.name)
        if found is not None:
            cells = [f"{found[name]:.2f}" if name in found else "-" for name in names]
            rows.append([arm.title, *cells])
    return table(head, rows)


def photo_table(results: Results) -> str:
    """What the length of a photograph follows."""
    found = results.tokenizers(BY_NAME[PHOTOS_EMA])
    names = {"edge_density": "edge density", "jpeg_bytes": "bytes as JPEG"}
    rows = [
        [title, told(found, read_path("eval", "length_correlation", name), digits=2)]
        for name, title in names.items()
    ]
    return table(["rank correlation of kept patches with", "photographs"], rows)


def all_tables(results: Results) -> str:
    """Everything, with headings."""
    parts = {
        "Quantizers on drawn scenes": quantizer_table(results, "scenes"),
        "Quantizers on photographs": quantizer_table(results, "photos"),
        "Words and reconstruction": length_table(results),
        "Captions of scenes held out": language_table(results),
        "Attributes right in captions, equal pairs": attribute_table(results, source="captions"),
        "Attributes read from codes by a linear probe": attribute_table(results, source="probe"),
        "Time over the default's": speed_table(results),
        "Photographs": photo_table(results),
    }
    return "\n".join(f"### {title}\n\n{text}" for title, text in parts.items())
