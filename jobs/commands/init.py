"""`pixelese init`: a corpus.yaml to start from."""

import typer

from schemas.declaration import parse_declaration
from schemas.errors import DeclarationError, StorageError
from schemas.layout import DECLARATION
from schemas.storage import Store

STARTER = """\
# What this corpus should be. `pixelese plan` says what is missing, `pixelese apply` makes it.
sources:
  # URLs and captions in Parquet, CSV, TSV or JSONL (.gz too); a path, a URL or a glob.
  - {name: web, urls: "lists/*.parquet", columns: {url: URL, caption: TEXT}}
  # - {name: archive, tars: "tars/*.tar"}            WebDataset tars, img2dataset's included
  # - {name: local, folder: images}                  images with .txt or .json beside them
  # - {name: books, text: "text/*.jsonl.gz"}         documents without images

fetch: {rows_per_shard: 10000, timeout_seconds: 20, retries: 2}
images: {resize: keep_ratio, max_side: 384, quality: 92}

# Any open_clip model: a name with pretrained weights, or local-dir:FOLDER.
# signals: {clip: {model: ViT-B-32, pretrained: laion2b_s34b_b79k}}

# Named rules over signals: width, height, min_side, aspect, bytes, caption_characters,
# caption_words, and clip_score where a CLIP model is declared.
select:
  large_enough: "min_side >= 64 and aspect <= 3"
  has_caption: "caption_words >= 2"
# Pictures count as one whose perceptual hashes differ in so many bits of 64; 0: equal ones alone.
duplicates: {distance: 4}
# decontaminate:                                 evaluation sets, never trained on
#   - {name: coco, tars: "eval/coco-*.tar"}      or folder: IMAGES, or hashes: FILE
unique: {by: cluster, prefer: first}
split: {validation: 0.005}

# tokenizer: tokenizer-v1          an artifact of `pixelese tokenizer train`
# text_tokenizer: tokenizer.json   a Hugging Face tokenizers file
"""


def init(
    corpus: str = typer.Argument(help="Folder or URL of the corpus, for example s3://bucket/mine."),
) -> None:
    """Write a commented corpus.yaml to start from."""
    store = Store(corpus)
    parse_declaration(STARTER)
    if store.exists(DECLARATION):
        raise DeclarationError(f"{store.full(DECLARATION)} exists already and is left as it is")
    if not store.put_if_absent(DECLARATION, STARTER.encode()):
        raise StorageError(f"{store.full(DECLARATION)} was written by somebody else just now")
    if not _refuses_overwrite(store):
        raise StorageError(
            f"{store.url} lets a second writer overwrite a file that must not be there yet "
            "(no conditional put): versions would not be safe from two writers. Use a store that "
            "supports it"
        )
    print(f"wrote {store.full(DECLARATION)}: edit it, then run `pixelese plan {corpus}`")


def _refuses_overwrite(store: Store) -> bool:
    """Probes the conditional put that commits rest on."""
    name = ".tmp-probe"
    store.delete(name)
    try:
        return store.put_if_absent(name, b"first") and not store.put_if_absent(name, b"second")
    finally:
        store.delete(name)
