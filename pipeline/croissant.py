"""A version as Croissant 1.0: JSON-LD that dataset search and loaders read.

The file lies beside the version's catalog file, and its paths are relative to that folder. The
record set `shards` is the catalog file itself, which any Croissant loader can read: it names every
file of the version with its digest. Naming them here too would take 30 MB for 100,000 shards.
"""

import json
from typing import Any

from pipeline.version_facts import VersionFacts
from schemas.layout import version_path

CATALOG_FIELDS = {
    "kind": "sc:Text",
    "source": "sc:Text",
    "shard": "sc:Text",
    "split": "sc:Text",
    "path": "sc:Text",
    "sha256": "sc:Text",
    "bytes": "sc:Integer",
    "num_records": "sc:Integer",
    "num_images": "sc:Integer",
    "num_text_ids": "sc:Integer",
    "num_codes": "sc:Integer",
    "num_places": "sc:Integer",
}
_FIELD_TEXTS = {
    "kind": "What it holds: `tokens` are what training reads.",
    "path": "Where it lies, from the corpus' root.",
    "sha256": "Of the file.",
}
_RECORD_FIELDS = {
    "key": ("sc:Text", "The record's name, a digest of its address and caption."),
    "text": ("sc:Integer", "The caption's or document's text ids."),
    "image": ("sc:Integer", "The image sentence: place words, then code words."),
}
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}
"""As the specification of Croissant 1.0 gives it."""


def croissant(facts: VersionFacts, *, name: str, description: str) -> bytes:
    """The JSON-LD of a version."""
    about = facts.declaration.about
    told = {
        "license": about.license,
        "citeAs": about.citation,
        "url": about.url,
        "creator": None
        if about.creator is None
        else {"@type": "Organization", "name": about.creator},
    }
    value = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": name,
        "description": description,
        "version": f"{facts.number}.0.0",
        "datePublished": facts.version.time,
        **{key: item for key, item in told.items() if item is not None},
        "distribution": [_catalog_file(facts), *_token_files(facts)],
        "recordSet": [_shards(), *_records(facts)],
    }
    return json.dumps(value, indent=2, ensure_ascii=False).encode() + b"\n"


def _catalog_file(facts: VersionFacts) -> dict[str, Any]:
    return {
        "@type": "cr:FileObject",
        "@id": "catalog",
        "name": "catalog",
        "description": "Every file of this version: a row a shard, with path, digest and counts.",
        "contentUrl": version_path(facts.number).rpartition("/")[2],
        "contentSize": f"{facts.catalog_bytes} B",
        "encodingFormat": "application/x-parquet",
        "sha256": facts.catalog_sha256,
    }


def _token_files(facts: VersionFacts) -> list[dict[str, Any]]:
    sources = sorted({item.source for item in facts.tokens})
    if not sources:
        return []
    return [
        {
            "@type": "cr:FileSet",
            "@id": "token-shards",
            "name": "token-shards",
            "description": (
                "Arrow files of ids, from the corpus' root. Other versions' files match as well: "
                "the catalog names those of this one."
            ),
            "encodingFormat": "application/vnd.apache.arrow.file",
            "includes": [f"tokens/{source}/*.arrow" for source in sources],
        }
    ]


def _shards() -> dict[str, Any]:
    return {
        "@type": "cr:RecordSet",
        "@id": "shards",
        "name": "shards",
        "description": "The files of this version.",
        "field": [
            {
                "@type": "cr:Field",
                "@id": f"shards/{column}",
                "name": f"shards/{column}",
                "description": _FIELD_TEXTS.get(column, f"The catalog's column `{column}`."),
                "dataType": kind,
                "source": {"fileObject": {"@id": "catalog"}, "extract": {"column": column}},
            }
            for column, kind in CATALOG_FIELDS.items()
        ],
    }


def _records(facts: VersionFacts) -> list[dict[str, Any]]:
    if not facts.tokens:
        return []
    return [
        {
            "@type": "cr:RecordSet",
            "@id": "records",
            "name": "records",
            "description": "A row an image-text pair, or a document.",
            "key": {"@id": "records/key"},
            "field": [
                {
                    "@type": "cr:Field",
                    "@id": f"records/{column}",
                    "name": f"records/{column}",
                    "description": text,
                    "dataType": kind,
                    **({"repeated": True} if column != "key" else {}),
                    "source": {"fileSet": {"@id": "token-shards"}, "extract": {"column": column}},
                }
                for column, (kind, text) in _RECORD_FIELDS.items()
            ],
        }
    ]
