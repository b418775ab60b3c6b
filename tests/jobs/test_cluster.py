"""Nodes may be added and lost, and the driver may move: what is made stays the same, byte by byte.

The cluster has two or three nodes on loopback. A web server holds its replies back, so that a
node is killed, added or left while its worker is in the middle of a shard.
"""

import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
import yaml

from schemas.catalog import KINDS, Catalog
from schemas.storage import Store
from tests.jobs.conftest import SmallCorpus, write_text_tokenizer
from tests.jobs.loopback import (
    HEAD,
    HoldingServer,
    LoopbackCluster,
    free_port,
    loopback_cluster,
)
from tests.jobs.test_kill import kill_group

pytestmark = [
    pytest.mark.ray,
    pytest.mark.slow,
    pytest.mark.long,
    pytest.mark.timeout(1200),
]

SHIPPED = Path(__file__).parents[2] / "tokenizer/assets/scenes-tokenizer"
NUM_ROWS = 48
THREADS = 2
"""Requests that a worker makes at a time."""
FETCHED = ("intake", "pairs")
SECOND, THIRD = "127.0.0.3", "127.0.0.4"

DRIVER = """
import sys, ray
address, host, *arguments = sys.argv[1:]
ray.init(address=address, _node_ip_address=host, log_to_driver=False)
own = ray.get_runtime_context().get_node_id()
assert [n["NodeManagerAddress"] for n in ray.nodes() if n["NodeID"] == own] == [host]
sys.argv = ["pixelese", *arguments]
from jobs.cli import main
main()
"""


@pytest.fixture(scope="module")
def nodes() -> Iterator[LoopbackCluster]:
    # Sockets have short names: pytest's own folders are too deep.
    with (
        tempfile.TemporaryDirectory(prefix="pxl", ignore_cleanup_errors=True) as folder,
        loopback_cluster(Path(folder)) as made,
    ):
        yield made


@pytest.fixture(scope="module")
def server() -> Iterator[HoldingServer]:
    with HoldingServer() as made:
        yield made


def make_web_corpus(root: Path, server: HoldingServer) -> SmallCorpus:
    """Six shards of pictures from the web, encoded with the tokenizer that ships."""
    root.mkdir(parents=True)
    write_text_tokenizer(root / "tokenizer.json")
    lines = [f"{server.url(number)}\ta red box number {number}" for number in range(NUM_ROWS)]
    (root / "list.tsv").write_text("\n".join(["URL\tTEXT", *lines]) + "\n")
    declaration = {
        "sources": [{"name": "web", "urls": "list.tsv"}],
        "fetch": {
            "rows_per_shard": 8,
            "num_threads": THREADS,
            "timeout_seconds": 250,
            "idle_seconds": 250,
        },
        "select": {"has_words": "caption_words >= 3"},
        "unique": {"by": "cluster"},
        "split": {"validation": 0.2},
        "tokenizer": str(SHIPPED),
        "text_tokenizer": "tokenizer.json",
    }
    (root / "corpus.yaml").write_text(yaml.safe_dump(declaration, sort_keys=False))
    return SmallCorpus(root)


@pytest.fixture
def web(tmp_path: Path, server: HoldingServer) -> SmallCorpus:
    return make_web_corpus(tmp_path / "corpus", server)


@pytest.fixture(scope="module")
def alone(
    tmp_path_factory: pytest.TempPathFactory, server: HoldingServer, nodes: LoopbackCluster
) -> SmallCorpus:
    """The same, made undisturbed by one node."""
    made = make_web_corpus(tmp_path_factory.mktemp("alone") / "corpus", server)
    finish(start(made, nodes))
    return made


def start(
    corpus: SmallCorpus, nodes: LoopbackCluster, *, until: str = "tokens"
) -> "subprocess.Popen[str]":
    arguments = ["apply", str(corpus.root), "--until", until, "--allow-private-addresses"]
    return corpus.start(*arguments, "--address", nodes.address)


def start_on(host: str, corpus: SmallCorpus, nodes: LoopbackCluster) -> "subprocess.Popen[str]":
    """The same with its driver on one of the nodes."""
    arguments = ["apply", str(corpus.root), "--allow-private-addresses"]
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, nodes.address, host, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
        env={**os.environ},
    )


def finish(process: "subprocess.Popen[str]") -> str:
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    return output


def rows(corpus: SmallCorpus, kinds: Sequence[str] = KINDS) -> dict[tuple[str, ...], list[str]]:
    """What was published: each file's name, fingerprint and digest."""
    version = Catalog(Store(corpus.root)).read()
    found = [row for kind in kinds for row in version.rows(kind)]
    assert {row.kind for row in found} == set(kinds)
    return {row.identity: [row.path, row.fingerprint, row.sha256, row.records] for row in found}


def test_a_node_that_joins_gets_work(
    web: SmallCorpus, alone: SmallCorpus, nodes: LoopbackCluster, server: HoldingServer
) -> None:
    num_nodes = len(nodes.nodes)
    server.hold()
    process = start(web, nodes, until="pairs")
    server.wait_until_asked(num_nodes * THREADS, process)  # all are in the middle of a shard
    nodes.add(SECOND)
    server.wait_until_asked((num_nodes + 1) * THREADS, process)  # and now one more is as well
    server.release()
    finish(process)
    assert rows(web, FETCHED) == rows(alone, FETCHED)


def test_a_killed_node_loses_nothing(
    web: SmallCorpus, alone: SmallCorpus, nodes: LoopbackCluster, server: HoldingServer
) -> None:
    nodes.have(SECOND)
    server.hold()
    process = start(web, nodes, until="pairs")
    server.wait_until_asked(len(nodes.nodes) * THREADS, process)
    nodes.kill(SECOND)
    server.release()
    assert "node lost" in finish(process)
    assert rows(web, FETCHED) == rows(alone, FETCHED)


def test_another_node_goes_on_where_a_killed_driver_ended(
    web: SmallCorpus, alone: SmallCorpus, nodes: LoopbackCluster, server: HoldingServer
) -> None:
    nodes.have(THIRD)
    server.hold()
    process = start_on(HEAD, web, nodes)
    server.wait_until_asked(len(nodes.nodes) * THREADS, process)
    kill_group(process)
    again = start_on(THIRD, web, nodes)
    server.wait_until_asked((len(nodes.nodes) + 1) * THREADS, again)
    server.release()
    finish(again)
    assert rows(web) == rows(alone)


VISIT = """
import sys
from jobs.cluster import cluster
from jobs.roster import Roster
from schemas.errors import ClusterError
from schemas.storage import Store
with cluster(sys.argv[1]):
    roster = Roster(Store(sys.argv[2]))
    try:
        print(*(node.address for node in roster.check()))
    except ClusterError as error:
        print(error)
    roster.close()
"""


def visit(nodes: LoopbackCluster, url: str) -> str:
    """What a roster's check of all nodes says of a corpus."""
    done = subprocess.run(
        [sys.executable, "-c", VISIT, nodes.address, url],
        capture_output=True,
        text=True,
        timeout=600,
        check=True,
    )
    return done.stdout


def test_a_node_that_does_not_reach_the_corpus_is_named(
    nodes: LoopbackCluster, tmp_path: Path
) -> None:
    nodes.have(THIRD)
    assert sorted(visit(nodes, str(tmp_path)).split()) == sorted(nodes.nodes)
    assert list(tmp_path.iterdir()) == []  # visits leave nothing behind
    # Files in memory are a process' own: nobody else sees them.
    (said,) = visit(nodes, "memory://corpus").splitlines()
    assert re.match(r"node 127\.0\.0\.[34] does not reach the corpus memory://corpus", said)
    assert "shared folder" in said


def test_what_no_node_has_is_told_before_anything_is_made(
    web: SmallCorpus, nodes: LoopbackCluster
) -> None:
    web.declare(resources={"encode": {"gpus": 1}})
    process = start(web, nodes)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "a worker of encode asks for 1 CPU, 1 GPU, which no node of the cluster has" in output
    assert "127.0.0.2 has 1 CPU" in output
    assert "Traceback" not in output
    assert web.files("pairs") == {}


def test_an_address_where_nothing_listens_is_told_at_once(web: SmallCorpus) -> None:
    address = f"{HEAD}:{free_port(HEAD)}"
    done = web.run("apply", str(web.root), "--address", address, "--allow-private-addresses")
    assert done.returncode == 1
    assert f"no Ray cluster can be joined at {address}" in done.stderr
    assert "Traceback" not in done.stderr
