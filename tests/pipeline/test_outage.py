"""The breaker: an outage of ours pauses or stops a worker, a bad list never does.

The worker is real threads over the real opener and a real server; the name server is a function.
"""

import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipeline.failures import FetchError
from pipeline.network import Network
from pipeline.opener import SafeOpener
from pipeline.outage import Breaker, History, evidence_of_outage
from pipeline.resolver import Address
from schemas.declaration import Fetch, Outage
from schemas.state import State
from tests.pipeline.test_addresses import addresses
from tests.pipeline.web import Web, serve

NO_SUCH_HOST = FetchError(State.DNS_ERROR, "no_such_host", is_final=True)
NO_RESOLVER = FetchError(State.DNS_ERROR, "try_again")
SILENT = FetchError(State.TIMEOUT, "connect")
THROTTLED = FetchError(State.HTTP_429, "status_429", http_status=429)
NOT_FOUND = FetchError(State.HTTP_4XX, "status_404", http_status=404)


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as running:
        running.bodies["/x"] = b"x"
        yield running


class Names:
    """A name server: `*.gone` do not exist, `*.lame` always fail, all fail while it is down."""

    def __init__(self) -> None:
        self.is_down = threading.Event()

    def __call__(self, host: str) -> list[Address]:
        if self.is_down.is_set() or host.endswith(".lame"):
            raise socket.gaierror(socket.EAI_AGAIN, "try again")
        if host.endswith(".gone"):
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        return addresses("127.0.0.1")


def settings(*, patience_seconds: float = 20.0, share: float = 0.5, **more: object) -> Fetch:
    outage = Outage(window=40, share=share, patience_seconds=patience_seconds)
    common = {"timeout_seconds": 20.0, "retries": 0, "num_threads": 8, "dns_cache_seconds": 0.0}
    return Fetch.model_validate(
        {**common, "allow_private_addresses": True, "outage": outage, **more}
    )


Results = dict[str, FetchError | None]


class Worker:
    """Works through a list as a download does."""

    def __init__(self, fetch: Fetch, names: Names) -> None:
        self.network = Network(fetch, look_up=names)
        self.opener = SafeOpener(fetch, network=self.network)
        self.results: Results = {}
        self.num_done = 0
        self._fetch = fetch

    def work(self, urls: list[str]) -> Results:
        with ThreadPoolExecutor(self._fetch.num_threads) as threads:
            for waiting in self.opener.rounds(urls):
                for _ in threads.map(self._one, waiting):
                    pass
        self.opener.close()
        self.network.close()
        return self.results

    def _one(self, url: str) -> None:
        try:
            self.opener.open(url)
            self.results[url] = None
        except FetchError as error:
            self.results[url] = error
        self.num_done += 1

    @property
    def states(self) -> Counter[str]:
        return Counter(error.state if error else "ok" for error in self.results.values())


def when(worker: Worker, num_done: int, act: Callable[[], None]) -> threading.Thread:
    """Acts after so many results, beside the worker."""

    def wait() -> None:
        while worker.num_done < num_done:
            time.sleep(0.002)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def is_paused(worker: Worker) -> bool:
    return worker.opener._breaker._is_paused


def bring_back(worker: Worker, event: threading.Event) -> threading.Thread:
    """Ends an outage as soon as it has been noticed."""

    def wait() -> None:
        started = time.monotonic()
        while not is_paused(worker) and time.monotonic() - started < 20:
            time.sleep(0.002)
        event.clear()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def test_rows_of_an_outage_that_passes_are_fetched_after_all(web: Web) -> None:
    names = Names()
    worker = Worker(settings(), names)
    urls = [web.url("/x", host=f"h{number}.example") for number in range(400)]
    breaking = when(worker, 150, names.is_down.set)
    mending = bring_back(worker, names.is_down)
    results = worker.work(urls)
    breaking.join()
    mending.join()
    assert worker.opener._breaker._num_pauses >= 1  # the interesting case occurred
    assert results.keys() == set(urls)
    assert worker.states == {"ok": 400}
    assert worker.opener.outage is None


def test_an_outage_that_stays_stops_the_worker_and_says_why(web: Web) -> None:
    names = Names()
    worker = Worker(settings(patience_seconds=1.5), names)
    breaking = when(worker, 150, names.is_down.set)
    started = time.monotonic()
    worker.work([web.url("/x", host=f"h{number}.example") for number in range(2000)])
    breaking.join()
    assert time.monotonic() - started < 60
    message = str(worker.opener.outage)
    assert "name look-ups failed" in message
    assert "of those that had failed, 0 of 8 answer now, and 0 of 8 that had worked" in message
    assert "run the same command again: nothing of this shard was published" in message
    stopped = [e for e in worker.results.values() if e is not None and e.reason == "stopped"]
    assert len(stopped) > 1500  # the list was not burnt through


def test_a_resolver_that_is_down_from_the_first_row_stops_the_worker(web: Web) -> None:
    names = Names()
    names.is_down.set()
    worker = Worker(settings(patience_seconds=0.5), names)
    worker.work([web.url("/x", host=f"h{number}.example") for number in range(200)])
    assert worker.opener.outage is not None


def test_the_only_host_of_a_list_is_waited_for_while_it_throttles(web: Web) -> None:
    worker = Worker(settings(), Names())
    urls = [web.url(f"/x?{number}", host="only.example") for number in range(200)]
    for url in urls:
        web.bodies["/" + url.split("/", 3)[3]] = b"x"
    breaking = when(worker, 60, web.is_throttling.set)
    mending = bring_back(worker, web.is_throttling)
    worker.work(urls)
    breaking.join()
    mending.join()
    assert worker.opener._breaker._num_pauses >= 1
    assert worker.states == {"ok": 200}


def test_a_list_that_is_bad_from_its_first_row_is_worked_through(web: Web) -> None:
    """95 %: names that are gone, pages that are gone, ports that are closed."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    kinds = [
        lambda n: web.url("/x", host=f"h{n}.gone"),
        lambda n: web.url("/status/404", host=f"h{n}.example"),
        lambda n: f"http://h{n}.example:{closed}/x",
    ]
    urls = [
        web.url("/x", host=f"h{number}.example") if number % 20 == 0 else kinds[number % 3](number)
        for number in range(300)
    ]
    worker = Worker(settings(patience_seconds=0.0), Names())
    worker.work(urls)
    assert worker.opener.outage is None
    assert worker.opener._breaker._num_pauses == 0
    assert worker.states["ok"] == 15


def test_a_list_full_of_lame_names_is_told_from_an_outage_by_those_that_work(web: Web) -> None:
    """Domains whose name servers fail look like a failing resolver, row by row."""
    worker = Worker(settings(patience_seconds=0.0), Names())
    urls = [
        web.url("/x", host=f"h{number}.{'lame' if number % 5 else 'example'}")
        for number in range(300)
    ]
    worker.work(urls)
    assert worker.opener._breaker._num_pauses == 1  # it looked once, and knows now
    assert worker.opener.outage is None
    assert worker.states == {"ok": 60, "dns_error": 240}


def test_one_dead_host_is_no_outage(web: Web) -> None:
    # One thread: among many, a host that fails at once could be the only one to finish at first.
    worker = Worker(settings(patience_seconds=0.0, num_threads=1), Names())
    urls = [
        web.url(f"/x?{number}", host="dead.lame")
        if number % 5
        else web.url("/x", host=f"h{number}.example")
        for number in range(300)
    ]
    worker.work(urls)
    assert worker.opener._breaker._num_pauses == 0
    assert worker.states == {"ok": 60, "dns_error": 240}


def test_a_proxy_that_is_down_is_not_the_rows_fault() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        closed = listener.getsockname()[1]
    fetch = settings(patience_seconds=0.5, proxy=f"http://127.0.0.1:{closed}")
    worker = Worker(fetch, Names())
    worker.work([f"http://h{number}.example/x" for number in range(100)])
    assert "the proxy could not be reached" in str(worker.opener.outage)


def test_a_share_of_one_switches_the_breaker_off(web: Web) -> None:
    names = Names()
    names.is_down.set()
    worker = Worker(settings(share=1.0, patience_seconds=0.0), names)
    worker.work([web.url("/x", host=f"h{number}.example") for number in range(200)])
    assert worker.opener.outage is None
    assert worker.states == {"dns_error": 200}


def test_a_stopped_worker_does_not_wait_for_an_outage(web: Web) -> None:
    names = Names()
    names.is_down.set()
    worker = Worker(settings(patience_seconds=60), names)
    stopping = when(worker, 16, worker.opener.stop)
    started = time.monotonic()
    worker.work([web.url("/x", host=f"h{number}.example") for number in range(200)])
    stopping.join()
    assert time.monotonic() - started < 40
    assert worker.opener.outage is None


def breaker(*, answers: Callable[[str], bool], history: History | None = None) -> Breaker:
    return Breaker(
        Outage(window=100, patience_seconds=0.0),
        ask=answers,
        num_threads=8,
        history=history,
        first_wait_seconds=0.0,
    )


def feed(breaking: Breaker, outcomes: list[FetchError | None], *, start: int = 0) -> None:
    for number, outcome in enumerate(outcomes, start):
        url, host = f"http://h{number}/", f"h{number}"
        if outcome is None:
            breaking.succeeded(url, host)
        else:
            breaking.failed(url, host, outcome, entered=breaking._num_pauses)


def test_a_jump_over_what_was_usual_is_believed_though_some_urls_work() -> None:
    """Half of the internet out of reach: what worked before the jump may well be the other half."""
    breaking = breaker(answers=lambda url: int(url[8:-1]) < 2000)
    feed(breaking, [None] * 300)
    feed(breaking, [SILENT] * 100, start=2000)
    assert breaking.outage is not None


def test_what_was_usual_before_is_no_outage() -> None:
    """Six of ten rows time out, shard after shard."""
    history = History()
    usual: list[FetchError | None] = [SILENT] * 6 + [NOT_FOUND] + [None] * 3
    first = breaker(answers=lambda url: int(url[8:-1]) % 10 > 5, history=history)
    feed(first, usual * 100)
    assert (first.outage, first._num_pauses) == (None, 1)
    second = breaker(answers=lambda url: False, history=history)
    feed(second, usual * 100, start=5000)
    assert second.outage is None
    assert second._num_pauses == 0
    feed(second, [SILENT] * 100, start=9000)
    assert second.outage is not None


def test_another_list_may_be_bad_from_its_first_row() -> None:
    """The shard before was of a good one."""
    history = History()
    feed(breaker(answers=lambda url: True, history=history), [None] * 1000)
    second = breaker(answers=lambda url: int(url[8:-1]) % 10 > 6, history=history)
    feed(second, ([SILENT] * 7 + [None] * 3) * 50)
    assert second._num_pauses == 1
    assert second.outage is None


def test_replies_that_arrive_during_a_pause_show_that_the_network_works() -> None:
    """What fails at once finishes first; slow replies of the others are still under way."""

    def ask(url: str) -> bool:
        if not breaking._tallies[0].share_of_host("slow"):
            breaking.succeeded("http://slow/", "slow")
        return url == "http://slow/"

    breaking = Breaker(
        Outage(window=100, patience_seconds=5.0), ask=ask, num_threads=8, first_wait_seconds=0.0
    )
    for _ in range(24):
        breaking.failed("http://dead/", "dead", NO_RESOLVER, entered=breaking._num_pauses)
    assert breaking._num_pauses == 1
    assert breaking.outage is None


def test_throttling_by_hosts_everywhere_is_an_outage() -> None:
    breaking = breaker(answers=lambda url: False)
    feed(breaking, [None] * 200)
    feed(breaking, [THROTTLED] * 100, start=1000)
    assert "servers asked for fewer requests (429)" in str(breaking.outage)


def test_few_requests_are_not_judged() -> None:
    breaking = breaker(answers=lambda url: False)
    feed(breaking, [NO_RESOLVER] * 23)
    assert breaking.outage is None
    feed(breaking, [NO_RESOLVER], start=23)
    assert breaking.outage is not None


def test_rows_for_which_nothing_was_asked_say_nothing() -> None:
    breaking = breaker(answers=lambda url: False)
    feed(breaking, [FetchError(State.TIMEOUT, "host_down", attempts=0)] * 90)
    feed(breaking, [NO_RESOLVER] * 23, start=100)
    assert breaking.outage is None
    feed(breaking, [NO_RESOLVER], start=200)  # they would have made it a tenth
    assert breaking.outage is not None


def test_the_slow_end_of_a_shard_is_no_outage() -> None:
    """What times out finishes last: the last results of a shard are nearly all time-outs."""
    breaking = breaker(answers=lambda url: False)
    feed(breaking, ([SILENT] + [None] * 4) * 80)
    feed(breaking, [SILENT] * 8, start=1000)
    assert breaking._num_pauses == 0


@pytest.mark.parametrize(
    ("failure", "is_evidence"),
    [
        (NO_RESOLVER, True),
        (FetchError(State.DNS_ERROR, "server_failed"), True),
        (FetchError(State.TIMEOUT, "dns"), True),
        (SILENT, True),
        (FetchError(State.CONNECTION_ERROR, "network_unreachable"), True),
        (FetchError(State.CONNECTION_ERROR, "proxy_down"), True),
        (THROTTLED, True),
        (NO_SUCH_HOST, False),
        (NOT_FOUND, False),
        (FetchError(State.CONNECTION_ERROR, "refused"), False),
        (FetchError(State.CONNECTION_ERROR, "unreachable"), False),
        (FetchError(State.TIMEOUT, "idle"), False),
        (FetchError(State.TIMEOUT, "deadline"), False),
        (FetchError(State.TIMEOUT, "host_down"), False),
        (FetchError(State.HTTP_5XX, "status_503", http_status=503), False),
    ],
)
def test_what_counts_as_evidence(failure: FetchError, is_evidence: bool) -> None:
    assert (evidence_of_outage(failure) is not None) is is_evidence
