"""The Ray cluster: a local one unless an address names another.

A local start takes about six seconds, so it is put off until there is work.
"""

import contextlib
import logging
import os
from collections.abc import Iterator

from schemas.errors import StorageError

OBJECT_STORE_BYTES = 256 << 20
"""Only shard names and result rows travel through the object store."""


@contextlib.contextmanager
def cluster(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """A Ray connection; joins one that is already there, and leaves that one running.

    Args:
        address: a running cluster (`ray://...`, `host:port`, `auto`); None for `RAY_ADDRESS`, or
            else a local cluster of this machine.
        num_cpus: CPUs of a local cluster; None for all.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    options = {"log_to_driver": False, "logging_level": logging.ERROR}
    try:
        if address == "local":
            ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                **options,
            )
        else:
            ray.init(address=address, **options)
    except ConnectionError as error:
        raise StorageError(
            f"no Ray cluster answers at {address}: start one with `ray start --head`, or leave out "
            "--address to use this machine alone"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def num_cluster_cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_cluster_gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))
