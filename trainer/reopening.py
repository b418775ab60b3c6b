"""The token stream that a checkpoint was trained on, opened again from what the checkpoint says.

Weights are not in a checkpoint, but the slots of every source are, and they are what decides: the
digest of the stream is compared, which costs nothing beside opening it.
"""

import dataclasses
from typing import Any

from schemas.errors import CheckpointError
from trainer.checkpoint import CheckpointInfo
from trainer.inventory import read_inventory
from trainer.mixture import Mixture
from trainer.plan import StreamConfig, make_plan
from trainer.resume import differences
from trainer.stream import TokenStream


def reopen_stream(info: CheckpointInfo, *, url: str) -> TokenStream:
    """The training stream of a checkpoint; `url` names it in messages.

    Raises:
        CheckpointError: it was trained on no corpus or on several, or what is there now is another
            stream.
        CatalogError, StorageError: the corpus or the version is gone.
    """
    parts = info.stream_parts
    names = [field.name for field in dataclasses.fields(StreamConfig)]
    if not info.corpus or not {*names, "sources", "places"} <= parts.keys():
        raise CheckpointError(
            f"{url} was not trained on a published corpus: give CORPUS@vN and the settings of its "
            "stream instead"
        )
    quotas: dict[str, int] = parts["sources"]
    inventory = read_inventory(info.corpus, version=info.version, split=info.split)
    known = [source.name for source in inventory.sources]
    _check_sources(quotas, known, info, url)
    plan = make_plan(
        [inventory],
        StreamConfig(**{name: parts[name] for name in names}),
        places=parts["places"],
        weights={name: quotas.get(name, 0) for name in known},
    )
    # A smaller block may keep these weights well enough: the run's own is wanted.
    mixture = Mixture.of_quotas(
        [quotas[source.name] for source in plan.sources], plan.mixture.num_sequences
    )
    digest_parts: dict[str, Any] = {**plan.digest_parts, "sources": quotas}
    stream = TokenStream(dataclasses.replace(plan, mixture=mixture, digest_parts=digest_parts))
    if stream.digest != info.stream_digest:
        raise CheckpointError(
            f"{info.corpus}@v{info.version} is no longer what {url} was trained on: "
            f"{differences(parts, digest_parts)}. Restore that version of the corpus"
        )
    return stream


def _check_sources(
    quotas: dict[str, int], known: list[str], info: CheckpointInfo, url: str
) -> None:
    if missing := sorted({*quotas} - {*known}):
        raise CheckpointError(
            f"{url} was trained on source {', '.join(missing)}, which "
            f"{info.corpus}@v{info.version} lacks: it was trained on several corpora, or the "
            "version was replaced. Give CORPUS@vN and the settings of its stream instead"
        )
