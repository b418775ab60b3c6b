"""corpus.yaml: what a corpus should be, as frozen models.

An unknown or misspelt key is an error that names its place in the file and the nearest valid key: a
typo in a threshold must never be a silent no-op.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from schemas.errors import DeclarationError
from schemas.layout import DECLARATION
from schemas.signals import ALWAYS
from schemas.storage import Store

Share = Annotated[float, Field(ge=0, lt=1)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Columns(_Model):
    """Which column (or JSON field) holds what."""

    url: str = "URL"
    caption: str = "TEXT"
    text: str = "text"
    sha256: str | None = None
    """sha256 that the bytes should have, in hex; others are `hash_mismatch`. None: no column."""


class Outage(_Model):
    """When fetching stops because something other than the list is at fault."""

    window: int = Field(400, ge=10)
    """The last requests of a worker that are looked at."""
    share: float = Field(0.5, gt=0, le=1)
    """A share of failures that only an outage explains (resolver or network down, throttled) above
    which a worker pauses, if it is also well above what was usual before. 1: never."""
    patience_seconds: float = Field(120.0, ge=0, allow_inf_nan=False)
    """How long it is waited for, with probes, before the run stops."""


class Source(_Model):
    """Where rows come from: exactly one of `urls`, `tars`, `folder` and `text`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
    urls: str | None = None
    """Lists of URLs and captions: Parquet, CSV, TSV or JSONL, also gzipped; a path, URL or glob."""
    tars: str | None = None
    """WebDataset tars, img2dataset's included; a path, URL or glob."""
    folder: str | None = None
    """Images with a .txt or .json beside them."""
    text: str | None = None
    """Documents without images: .txt (a file a document) or JSONL, also gzipped."""
    columns: Columns = Columns()

    @model_validator(mode="after")
    def _one_kind(self) -> "Source":
        given = [kind for kind in SOURCE_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            found = " and ".join(given) or "none of them"
            raise ValueError(
                f"source {self.name!r} must have exactly one of {', '.join(SOURCE_KINDS)}, "
                f"it has {found}"
            )
        return self

    @property
    def kind(self) -> str:
        """`urls`, `tars`, `folder` or `text`."""
        return next(kind for kind in SOURCE_KINDS if getattr(self, kind) is not None)

    @property
    def location(self) -> str:
        """The path, URL or glob."""
        return str(getattr(self, self.kind))


SOURCE_KINDS = ("urls", "tars", "folder", "text")


class Fetch(_Model):
    """How rows are cut into shards, and downloaded."""

    rows_per_shard: int = Field(10_000, ge=1)
    """Input rows a pair shard."""
    text_bytes_per_shard: int = Field(16_000_000, ge=1)
    """UTF-8 bytes a shard of a text source."""
    timeout_seconds: float = Field(20.0, gt=0, allow_inf_nan=False)
    """Limit for one request, connect to last byte, redirects included."""
    retries: int = Field(2, ge=0)
    """More attempts after a transient failure."""
    num_threads: int = Field(32, ge=1)
    """Concurrent requests a worker."""
    max_bytes: int = Field(30_000_000, ge=1)
    """A longer body is not read to its end."""
    allow_private_addresses: bool = False
    """Also connect to loopback and private networks: for tests and intranets."""
    respect_opt_out: bool = True
    """Honour X-Robots-Tag: noai, noimageai, noindex, noimageindex, none."""
    user_agent: str = Field("Mozilla/5.0 (compatible; pixelese)", min_length=1, max_length=500)
    """Its product (here `pixelese`) is the name that robots.txt and X-Robots-Tag know us by."""
    contact: str | None = None
    """A URL or mail address that is put into the User-Agent, for those whose server is asked."""
    respect_robots_txt: bool = False
    """Ask each host's robots.txt first; a denied URL is `robots_denied`."""
    idle_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Limit between two bytes of a reply."""
    requests_per_host: int = Field(8, ge=1)
    """Concurrent requests to one host, a worker."""
    dns_cache_seconds: float = Field(300.0, ge=0, allow_inf_nan=False)
    """How long an answer of the resolver is believed."""
    proxy: str | None = None
    """An http proxy that all requests go through, http://HOST:PORT; it may be a private address.
    Which address it connects to is then its choice: give it rules of its own."""
    blocked_domains: str | None = None
    """A text file, a domain a line; its subdomains count. Their rows are `removed`, not fetched."""
    blocked_hashes: str | None = None
    """A text file, a hex digest a line: sha256 of a URL (then it is not fetched), or of bytes."""
    outage: Outage = Outage()

    @field_validator("user_agent")
    @classmethod
    def _fits_a_header(cls, agent: str) -> str:
        if not re.fullmatch(r"[!-~]([ -~]*[!-~])?", agent):
            raise ValueError("must be plain ASCII text without line breaks")
        return agent

    @field_validator("contact")
    @classmethod
    def _can_be_reached(cls, contact: str | None) -> str | None:
        if contact is not None and not _CONTACT.fullmatch(contact):
            raise ValueError("must be a mail address or an http(s) URL without spaces or brackets")
        return contact

    @field_validator("proxy")
    @classmethod
    def _is_proxy(cls, proxy: str | None) -> str | None:
        if proxy is not None and not _is_proxy_url(proxy):
            raise ValueError("must be http://HOST:PORT, without user, path or query")
        return proxy


_CONTACT = re.compile(r"https?://[!#-'*-:<-\[\]-~]+|[!#-'*+\-./-9=?A-Z^-~]+@[A-Za-z0-9.-]+")
"""What a comment in a header holds as it is: no space, quote, bracket, semicolon or backslash."""


def _is_proxy_url(proxy: str) -> bool:
    try:
        parts = urlsplit(proxy)
        port = parts.port
    except ValueError:
        return False
    is_bare = parts.username is None and parts.path in ("", "/") and not parts.query
    return parts.scheme == "http" and bool(parts.hostname) and bool(port) and is_bare


class Images(_Model):
    """How an image is stored."""

    resize: Literal["keep_ratio"] = "keep_ratio"
    max_side: int = Field(384, ge=16)
    """A larger image is shrunk until its longer side is this many pixels."""
    quality: int = Field(92, ge=1, le=100)
    """JPEG quality."""
    min_side: int = Field(8, ge=1)
    """An image with a shorter side is `too_small`."""
    max_aspect: float = Field(20.0, ge=1)
    """An image with longer / shorter side above this is `too_small`, reason `aspect`."""
    max_pixels: int = Field(100_000_000, ge=1)
    """An image whose header claims more is `too_large`, and is never decoded."""
    decode_seconds: float = Field(10.0, gt=0, allow_inf_nan=False)
    """Limit for decoding one image; then it is `too_large`, reason `time`."""
    decode_bytes: int = Field(768 << 20, ge=64 << 20)
    """Memory that decoding one image may take; then it is `too_large`, reason `memory`."""


class ClipSettings(_Model):
    """The model behind `clip_score`, by its open_clip name or `local-dir:PATH`."""

    model: str
    pretrained: str | None = None
    batch_size: int = Field(64, ge=1)
    """Images a forward pass; part of the numeric environment."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16 takes a third of the time on a CPU that has it; scores move in the third decimal."""


class HeadSettings(_Model):
    """A small model over the CLIP image embedding."""

    weights: str
    """A safetensors file: a linear layer, or an MLP as LAION publishes them."""
    activation: Literal["none", "relu", "gelu"] | None = None
    """Between the layers of an MLP. LAION's own are known by their names and sizes; of others the
    file does not tell."""
    positive: Literal[0, 1] | None = None
    """Of a head with two outputs: which one's share (softmax) is the score. LAION's watermark
    classifier says the watermark first: 0."""


class LanguageSettings(_Model):
    """How the caption's language is found."""

    among: tuple[str, ...] = ()
    """ISO 639-1 codes to choose from; none: all that the detector knows."""
    accuracy: Literal["high", "low"] = "high"
    """high: 1 GB of memory a worker with all languages; low: 12 MB, and often wrong on captions of
    a few words."""


class NoSettings(_Model):
    """A signal without options; written `{}`."""


class Signals(_Model):
    """Signals beyond those that are always measured (image, caption).

    `embedding`, `aesthetic`, `nsfw` and `watermark` come from the model of `clip`.
    """

    clip: ClipSettings | None = None
    embedding: NoSettings | None = None
    """Keeps the CLIP image embedding, so that a new head reads it and runs no model."""
    aesthetic: HeadSettings | None = None
    nsfw: HeadSettings | None = None
    watermark: HeadSettings | None = None
    texture: NoSettings | None = None
    """Sharpness, edge density and entropy of the picture."""
    language: LanguageSettings | None = None

    @model_validator(mode="after")
    def _has_model(self) -> "Signals":
        of_clip = ("embedding", "aesthetic", "nsfw", "watermark")
        asked = [name for name in of_clip if getattr(self, name) is not None]
        if asked and self.clip is None:
            raise ValueError(f"{asked[0]} is read from CLIP: say which model, under `clip`")
        return self

    @property
    def names(self) -> list[str]:
        """All signal groups of the corpus."""
        return [
            *ALWAYS,
            *(name for name in type(self).model_fields if getattr(self, name) is not None),
        ]


class Duplicates(_Model):
    """When two images count as the same picture: equal bytes, equal pixels, or near hashes."""

    distance: int = Field(4, ge=0, le=8)
    """Bits of the 64-bit perceptual hash that may differ; 0: equal bytes or pixels alone. Photos
    want 4; drawings of few shapes, icons and diagrams want 0, for their hashes meet by chance."""


class EvaluationSet(_Model):
    """Pictures that must not be trained on: exactly one of `tars`, `folder` and `hashes`."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$", max_length=64)
    tars: str | None = None
    """WebDataset tars; a path, URL or glob."""
    folder: str | None = None
    """Image files."""
    hashes: str | None = None
    """A text file, a hex digest a line: sha256 of bytes (64 digits) or perceptual hash (16)."""

    @model_validator(mode="after")
    def _one_kind(self) -> "EvaluationSet":
        given = [kind for kind in EVALUATION_KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"evaluation set {self.name!r} must have exactly one of "
                f"{', '.join(EVALUATION_KINDS)}; it has {' and '.join(given) or 'none of them'}"
            )
        return self

    @property
    def kind(self) -> str:
        """`tars`, `folder` or `hashes`."""
        return next(kind for kind in EVALUATION_KINDS if getattr(self, kind) is not None)

    @property
    def location(self) -> str:
        """The path, URL or glob."""
        return str(getattr(self, self.kind))


EVALUATION_KINDS = ("tars", "folder", "hashes")


class Unique(_Model):
    """Which record of a duplicate cluster stays."""

    by: Literal["cluster"] = "cluster"
    prefer: Literal["first"] = "first"


class Split(_Model):
    """Held-out shares, by duplicate cluster."""

    validation: Share = 0.0


class WorkerResources(_Model):
    """What a worker of a stage holds while the stage runs, and where it may run."""

    cpus: float = Field(1.0, ge=0, allow_inf_nan=False)
    """Cores. It is what Ray reserves, not a limit: less than one where workers mostly wait."""
    gpus: float | None = Field(None, ge=0, allow_inf_nan=False)
    """GPUs, or a share of one. None: one for a stage with a model where there are any."""
    memory_bytes: int = Field(0, ge=0)
    custom: dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]] = Field(
        default_factory=dict
    )
    """Resources of your own, by the names that nodes were started with."""
    labels: dict[str, str] = Field(default_factory=dict)
    """Labels that a node must have, each with this value."""
    workers: int | None = Field(None, ge=1)
    """At most so many at a time. None: as many as the nodes hold."""

    @field_validator("gpus")
    @classmethod
    def _can_be_divided(cls, gpus: float | None) -> float | None:
        if gpus is not None and gpus > 1 and not gpus.is_integer():
            raise ValueError("must be a whole number, or a share of one GPU")
        return gpus

    @field_validator("custom")
    @classmethod
    def _are_own_names(cls, custom: dict[str, float]) -> dict[str, float]:
        taken = sorted({"CPU", "GPU", "memory", "object_store_memory"} & set(custom))
        if taken:
            raise ValueError(f"{taken[0]} is Ray's own: use `cpus`, `gpus` and `memory_bytes`")
        return custom

    @model_validator(mode="after")
    def _holds_something(self) -> "WorkerResources":
        if not (self.cpus or self.gpus or self.memory_bytes or self.custom) and not self.workers:
            raise ValueError("a worker that holds nothing needs `workers`: any number would fit")
        return self


class Resources(_Model):
    """What workers hold, by stage. Changes where and how fast things are made, and no byte."""

    intake: WorkerResources = WorkerResources()
    """Also of `--retry`."""
    fetch: WorkerResources = WorkerResources()
    measure: WorkerResources = WorkerResources()
    relate: WorkerResources = WorkerResources()
    """Also of reading evaluation sets."""
    select: WorkerResources = WorkerResources()
    encode: WorkerResources = WorkerResources()
    wait_seconds: float = Field(0.0, ge=0, allow_inf_nan=False)
    """How long a stage waits for a first node that can hold its worker, as an autoscaler takes
    minutes to bring one."""


class About(_Model):
    """What people should know of the corpus; it goes into each version's card and decides nothing
    else."""

    name: str | None = Field(None, min_length=1, max_length=200)
    description: str | None = Field(None, min_length=1)
    license: str | None = Field(None, min_length=1, max_length=200)
    """A name such as cc-by-4.0, or a URL."""
    creator: str | None = Field(None, min_length=1, max_length=200)
    citation: str | None = Field(None, min_length=1)
    """How it is to be cited, for example in BibTeX."""
    url: str | None = Field(None, pattern=r"^https?://\S+$")
    """Where the corpus is at home."""
    contact: str | None = Field(None, min_length=1, max_length=200)
    """Whom to ask to have something removed; by default that of `fetch`."""


class Declaration(_Model):
    """A whole corpus.yaml."""

    sources: tuple[Source, ...] = Field(min_length=1)
    fetch: Fetch = Fetch()
    images: Images = Images()
    signals: Signals = Signals()
    duplicates: Duplicates = Duplicates()
    decontaminate: tuple[EvaluationSet, ...] = ()
    """Evaluation sets; a pair whose picture is in one is dropped by the selection."""
    select: dict[str, str] = Field(default_factory=dict)
    unique: Unique | None = None
    split: Split = Split()
    tokenizer: str | None = None
    """The visual tokenizer's artifact; without it the corpus stops at its selection."""
    text_tokenizer: str | None = None
    about: About = About()
    resources: Resources = Resources()

    @model_validator(mode="after")
    def _consistent(self) -> "Declaration":
        names = [source.name for source in self.sources]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"two sources are called {twice[0]!r}: names must differ")
        sets = [item.name for item in self.decontaminate]
        twice = sorted({name for name in sets if sets.count(name) > 1})
        if twice:
            raise ValueError(f"two evaluation sets are called {twice[0]!r}: names must differ")
        return self

    def source(self, name: str) -> Source:
        """The source of a name."""
        return next(source for source in self.sources if source.name == name)

    @property
    def has_images(self) -> bool:
        """Whether any source brings images."""
        return any(source.kind != "text" for source in self.sources)


def parse_declaration(text: str, *, place: str = DECLARATION) -> Declaration:
    """Reads the text of a corpus.yaml.

    Raises:
        DeclarationError: it is no YAML, or something in it cannot be; the message has one line a
            mistake, each with its place in the file.
    """
    try:
        value = yaml.safe_load(text)
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise DeclarationError(f"{place} is not valid YAML: {error}") from error
    twice = _repeated_keys(node, place) if node is not None else []
    if twice:
        raise DeclarationError("\n".join(twice))
    if not isinstance(value, dict):
        found_type = "is empty" if value is None else f"holds {type(value).__name__}"
        raise DeclarationError(
            f"{place} must be a mapping that begins with `sources:`; it {found_type}. "
            "`pixelese init` writes one to start from"
        )
    try:
        return Declaration.model_validate(value)
    except ValidationError as error:
        found = error.errors()
        # A list whose items failed is reported as too short as well: that one says nothing new.
        told = [item for item in found if item["type"] != "too_short"] or found
        lines = [_explain(item, node, place) for item in told]
        raise DeclarationError("\n".join(lines)) from error


def load_declaration(store: Store) -> tuple[Declaration, str]:
    """The declaration of a corpus, and its text.

    Raises:
        DeclarationError: there is none, or it is wrong.
    """
    if not store.exists(DECLARATION):
        raise DeclarationError(
            f"{store.full(DECLARATION)} does not exist: `pixelese init {store.url}` writes one"
        )
    data = store.read(DECLARATION)
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise DeclarationError(f"{store.full(DECLARATION)} is not UTF-8: {error}") from error
    return parse_declaration(text, place=store.full(DECLARATION)), text


def resolve(location: str, store: Store) -> str:
    """A path in corpus.yaml as a URL: relative ones start at the corpus root."""
    prefix, path = (
        ("local-dir:", location[10:]) if location.startswith("local-dir:") else ("", location)
    )
    if "://" in path or path.startswith("/"):
        return prefix + path
    return f"{prefix}{store.url}/{path}"


def _explain(item: Mapping[str, Any], node: yaml.Node | None, place: str) -> str:
    path: Sequence[int | str] = item["loc"]
    where = f"{place}{_line(node, path)}: "
    dotted = re.sub(r"\.(\d+)", r"[\1]", ".".join(map(str, path)))
    if item["type"] == "extra_forbidden":
        valid = _valid_keys(path[:-1])
        near = difflib.get_close_matches(str(path[-1]).lower(), valid, n=1, cutoff=0.5)
        hint = f"did you mean `{near[0]}`?" if near else f"valid keys are {', '.join(valid)}"
        return f"{where}unknown key `{dotted}`; {hint}"
    if item["type"] == "missing":
        return f"{where}`{dotted}` is missing"
    message = _PLAIN.get(item["type"]) or str(item["msg"]).removeprefix("Value error, ")
    given = "" if isinstance(item["input"], dict | list) else f", got {item['input']!r}"
    return f"{where}`{dotted}`: {message}{given}" if dotted else f"{where}{message}"


_PLAIN = {
    "model_type": "must be a mapping",
    "dict_type": "must be a mapping",
    "tuple_type": "must be a list",
    "too_short": "must not be empty",
}
"""Words of YAML in place of Python's, by pydantic's type of error."""


def _repeated_keys(node: yaml.Node, place: str) -> list[str]:
    """A line for each key that its mapping has twice: YAML would drop the first in silence."""
    found: dict[int, str] = {}
    waiting, visited = [node], {id(node)}  # an alias may lead back to a node
    while waiting:
        node = waiting.pop()
        keys: set[str] = set()
        for part in node.value if isinstance(node, yaml.CollectionNode) else ():
            key, value = part if isinstance(part, tuple) else (None, part)
            if key is not None and str(key.value) in keys:
                line = key.start_mark.line + 1
                found[line] = f"{place}:{line}: key `{key.value}` is there twice; keep one of them"
            if key is not None:
                keys.add(str(key.value))
            if id(value) not in visited:
                visited.add(id(value))
                waiting.append(value)
    return [found[line] for line in sorted(found)]


def _valid_keys(path: Sequence[int | str]) -> list[str]:
    """The keys that a mapping at `path` may have."""
    model: Any = Declaration
    for step in path:
        if isinstance(step, int):
            continue
        annotation = model.model_fields[step].annotation
        model = next(
            item
            for item in (annotation, *getattr(annotation, "__args__", ()))
            if isinstance(item, type) and issubclass(item, BaseModel)
        )
    return sorted(model.model_fields)


def _line(node: yaml.Node | None, path: Sequence[int | str]) -> str:
    """`:12` for the line of the deepest part of `path` that is in the file."""
    line = None
    for step in path:
        if isinstance(node, yaml.MappingNode):
            for key, value in node.value:
                if key.value == str(step):
                    line, node = key.start_mark.line, value
                    break
            else:
                break
        elif isinstance(node, yaml.SequenceNode) and isinstance(step, int):
            node = node.value[step]
            line = node.start_mark.line
    return "" if line is None else f":{line + 1}"
