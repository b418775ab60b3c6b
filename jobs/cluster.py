"""The Ray cluster: a local one unless an address names another.

A local start takes about six seconds, so it is put off until there is work. Whether anybody listens
at an address is tried first by a plain connection, as Ray itself goes on trying for minutes.
"""

import contextlib
import logging
import os
import re
import socket
from collections.abc import Iterator
from typing import Any

from schemas.errors import ClusterError

OBJECT_STORE_BYTES = 256 << 20
"""Only shard names and result rows travel through the object store."""
CONNECT_SECONDS = 10.0


@contextlib.contextmanager
def cluster(address: str | None = None, *, num_cpus: int | None = None) -> Iterator[None]:
    """A Ray connection; joins one that is already there, and leaves that one running.

    Args:
        address: a running cluster (`ray://...`, `host:port`, `auto`); None for `RAY_ADDRESS`, or
            else a local cluster of this machine.
        num_cpus: CPUs of a local cluster; None for all.

    Raises:
        ClusterError: no cluster can be joined at the address, or none starts here in time.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_AUTH_MODE", "disabled")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    import ray

    if ray.is_initialized():
        yield
        return
    address = named_address(address) or "local"
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address == "local":
        options |= {
            "num_cpus": num_cpus,
            "object_store_memory": OBJECT_STORE_BYTES,
            "include_dashboard": False,
        }
    else:
        _check_listens(address)
    try:
        ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise _cannot_join(address, str(error)) from error
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no type of its own for it
            raise
        raise ClusterError(
            "Ray did not start on this machine within half a minute: too much else runs here. Run "
            "the same command again, nothing is lost"
        ) from error
    try:
        yield
    finally:
        ray.shutdown()


def named_address(address: str | None) -> str | None:
    """The running cluster that is to be joined; None for a local one."""
    return address or os.environ.get("RAY_ADDRESS") or None


def _check_listens(address: str) -> None:
    """Raises ClusterError where an address that names host and port takes no connection."""
    found = re.fullmatch(r"(?:ray://)?\[?(?P<host>[^/]+?)\]?:(?P<port>\d+)", address)
    if found is None:
        return
    try:
        where = found["host"], int(found["port"])
        socket.create_connection(where, timeout=CONNECT_SECONDS).close()
    except (OSError, OverflowError) as error:
        raise _cannot_join(address, str(error)) from error


def _cannot_join(address: str, reason: str) -> ClusterError:
    return ClusterError(
        f"no Ray cluster can be joined at {address}: {reason}. Start one with `ray start --head`, "
        "or leave out --address (and RAY_ADDRESS) to use this machine alone"
    )


def num_cluster_cpus() -> int:
    """CPUs of the connected cluster."""
    import ray

    return max(1, int(ray.cluster_resources().get("CPU", 1)))


def num_cluster_gpus() -> int:
    """GPUs of the connected cluster."""
    import ray

    return int(ray.cluster_resources().get("GPU", 0))


def check_ranks(num_ranks: int) -> None:
    """Raises ClusterError where a training's ranks, a CPU or a GPU each, do not fit at once: Ray
    Train would wait for ever."""
    num_cpus, num_gpus = num_cluster_cpus(), num_cluster_gpus()
    if num_ranks > max(num_cpus, num_gpus):
        raise ClusterError(
            f"--workers {num_ranks} asks for so many CPUs or GPUs, and the cluster has {num_cpus} "
            f"and {num_gpus}: ask for fewer workers, or join a larger cluster by --address"
        )
