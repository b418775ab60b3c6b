"""The breaker: pauses a worker when something other than its list is at fault, or stops it.

Some failures only an outage of ours explains: the resolver fails, nothing can be connected to,
servers everywhere ask for fewer requests. When their share among the last finished requests, and
among the hosts of these, exceeds both a limit and what was usual before, all requests wait while a
few URLs are asked again: some that failed, and some that had worked. Rows come in the order of
their hash, so the list itself cannot change suddenly: after a jump, only the return of what failed
ends the pause, and what failed because of it is asked again. Where there is no past to compare
with, URLs that do work show that the list is just as bad as it looks. What it costs: that a list of
one host is judged by this host, so its death looks like ours.
"""

import math
import random
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

from pipeline.failures import FetchError
from schemas.declaration import Outage
from schemas.errors import OutageError
from schemas.state import State

_FEWEST = 24
"""Finished requests before anything is judged."""
_MARGIN = 0.2
"""Over what was usual."""
_NUM_PROBES = 8
_NUM_WITNESSES = 16
_FIRST_WAIT_SECONDS = 1.0
_LONGEST_WAIT_SECONDS = 30.0

_KINDS = {
    (State.DNS_ERROR, "try_again"): "name look-ups failed",
    (State.DNS_ERROR, "server_failed"): "name look-ups failed",
    (State.DNS_ERROR, "failed"): "name look-ups failed",
    (State.TIMEOUT, "dns"): "name look-ups got no answer",
    (State.TIMEOUT, "connect"): "connections got no answer",
    (State.CONNECTION_ERROR, "network_unreachable"): "the network was unreachable",
    (State.CONNECTION_ERROR, "no_socket"): "this machine had no socket left",
    (State.CONNECTION_ERROR, "proxy_down"): "the proxy could not be reached",
    (State.CONNECTION_ERROR, "proxy_auth"): "the proxy asked for a password",
    (State.HTTP_429, "status_429"): "servers asked for fewer requests (429)",
}


def evidence_of_outage(failure: FetchError) -> str | None:
    """In plain words, what an outage of ours explains about a failure; None for all others."""
    return _KINDS.get((failure.state, failure.reason))


class _Finished(NamedTuple):
    url: str
    host: str
    kind: str | None
    """The evidence."""
    is_witness: bool
    """Whether a server replied."""


class _Tally:
    """The last finished requests, counted as they come and go."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.entries: deque[_Finished] = deque()
        self._num_bad = 0
        self._of_host: dict[str, tuple[int, int]] = {}
        """Requests of a host, and those with evidence."""
        self._num_bad_hosts = 0
        """Hosts of whose requests more than half are evidence."""

    def add(self, entry: _Finished) -> _Finished | None:
        """Counts one more, and returns the one that is too old now."""
        self.entries.append(entry)
        self._count(entry, 1)
        if len(self.entries) <= self.size:
            return None
        old = self.entries.popleft()
        self._count(old, -1)
        return old

    def share(self) -> float:
        """Evidence among requests, or among hosts: whichever is less."""
        if not self.entries:
            return 0.0
        return min(self._num_bad / len(self.entries), self._num_bad_hosts / len(self._of_host))

    def share_of_host(self, host: str) -> float:
        """A host's share of requests."""
        num, _ = self._of_host.get(host, (0, 0))
        return num / max(1, len(self.entries))

    def _count(self, entry: _Finished, sign: int) -> None:
        num, num_bad = self._of_host.get(entry.host, (0, 0))
        self._num_bad_hosts -= 2 * num_bad > num
        num += sign
        if entry.kind is not None:
            num_bad += sign
            self._num_bad += sign
        self._num_bad_hosts += 2 * num_bad > num
        if num:
            self._of_host[entry.host] = num, num_bad
        else:
            del self._of_host[entry.host]


@dataclass(slots=True)
class History:
    """What was usual: in one shard, or in a worker's run."""

    num_finished: int = 0
    num_bad: int = 0
    witnesses: dict[str, str] = field(default_factory=dict)
    """Host -> a URL that it answered: a sample over all of it."""
    _num_offered: int = 0

    def add(self, entry: _Finished) -> None:
        """Takes a request that nothing came of later."""
        self.num_finished += 1
        self.num_bad += entry.kind is not None
        if not entry.is_witness:
            return
        self._num_offered += 1
        if len(self.witnesses) >= _NUM_WITNESSES:
            if random.random() >= _NUM_WITNESSES / self._num_offered:
                return
            del self.witnesses[random.choice(list(self.witnesses))]
        self.witnesses[entry.host] = entry.url

    @property
    def share(self) -> float:
        """Of evidence."""
        return self.num_bad / self.num_finished if self.num_finished else 0.0


class Breaker:
    """One serves all threads of a worker, for one shard."""

    def __init__(
        self,
        settings: Outage,
        *,
        ask: Callable[[str], bool],
        num_threads: int,
        history: History | None = None,
        first_wait_seconds: float = _FIRST_WAIT_SECONDS,
    ) -> None:
        """
        Args:
            settings: when to pause, and for how long.
            ask: requests a URL once; whether what came is no evidence of an outage.
            num_threads: concurrent requests. The last ones of a shard are the slowest, and must
                not be taken for all of it.
            history: what was usual in the shards before, perhaps of other lists.
            first_wait_seconds: until the first probe; each further wait is twice as long.
        """
        self.outage: OutageError | None = None
        """Why fetching was stopped."""
        self.is_first_round = True
        """Whether what is asked is a fair sample of the list, and not what was put off."""
        self._settings = settings
        self._ask = ask
        self._run = history or History()
        self._past = History()
        """Of this shard, as far as it has left the window."""
        self._first_wait_seconds = first_wait_seconds
        recent = max(_FEWEST, min(settings.window, 3 * num_threads))
        self._tallies = [_Tally(settings.window), _Tally(recent)]
        self._floor = 0.0
        """A share of evidence that turned out to be the list's own."""
        self._changed = threading.Condition()
        self._is_paused = False
        self._num_pauses = 0
        self._stopped = threading.Event()
        self._to_ask_again: set[str] = set()

    def stop(self) -> None:
        """Makes all who wait, and all who come, fail at once."""
        self._stopped.set()
        with self._changed:
            self._changed.notify_all()

    def is_stopped(self) -> bool:
        """Whether every request fails."""
        return self._stopped.is_set()

    def enter(self) -> int:
        """Waits while fetching is paused. Returns the number of pauses so far, for `failed`.

        Raises:
            FetchError: `internal_error`, reason `stopped`: what becomes of the shard is decided.
        """
        if self._is_paused:
            with self._changed:
                while self._is_paused and not self._stopped.is_set():
                    self._changed.wait()
        if self._stopped.is_set():
            raise FetchError(State.INTERNAL_ERROR, "stopped", attempts=0)
        return self._num_pauses

    def succeeded(self, url: str, host: str) -> None:
        """Takes note of a reply that arrived."""
        with self._changed:
            self._add(_Finished(url, host, None, is_witness=True))

    def failed(self, url: str, host: str, failure: FetchError, *, entered: int) -> bool:
        """Takes note of a failure after all attempts.

        The caller whose failure is one too many sits the outage out in here, and asks around.

        Args:
            url: what was asked for.
            host: who failed.
            failure: how.
            entered: what `enter` had returned.

        Returns:
            whether to ask once more, because an outage came between.
        """
        if failure.reason == "host_down":  # nobody was asked
            return False
        kind = evidence_of_outage(failure)
        with self._changed:
            if kind is not None and (self._is_paused or entered != self._num_pauses):
                return True
            is_witness = kind is None and failure.http_status is not None
            self._add(_Finished(url, host, kind, is_witness))
            seen = self._see() if kind is not None else None
            if seen is None:
                return False
            self._is_paused = True
            self._num_pauses += 1
        try:
            return self._sit_out(seen, url)
        finally:
            with self._changed:
                self._is_paused = False
                self._changed.notify_all()

    def is_main(self, host: str) -> bool:
        """Whether a host is most of the list: its silence is judged here."""
        with self._changed:
            return self._tallies[0].share_of_host(host) > 0.5

    def take_failed(self) -> set[str]:
        """The URLs whose failure had been told before an outage was seen; they come once."""
        with self._changed:
            taken, self._to_ask_again = self._to_ask_again, set()
        return taken

    def _add(self, entry: _Finished) -> None:
        whole, recent = self._tallies
        recent.add(entry)
        old = whole.add(entry)
        if old is not None:
            self._settle(old)

    def _settle(self, entry: _Finished) -> None:
        self._past.add(entry)
        self._run.add(entry)

    @property
    def _has_past(self) -> bool:
        """Whether it is known what is usual for this shard."""
        return self._past.num_finished >= self._settings.window

    @property
    def _usual(self) -> float:
        """The share of evidence that is no news."""
        return self._past.share if self._has_past else max(self._run.share, self._floor)

    def _see(self) -> "_Seen | None":
        """What the last requests look like, if that is an outage."""
        for tally in self._tallies:
            is_enough = len(tally.entries) >= min(_FEWEST, tally.size)
            if is_enough and tally.share() > self._limit(tally):
                return _Seen.of(tally.entries, self._past.witnesses, self._usual)
        return None

    def _limit(self, tally: _Tally) -> float:
        """The share that is too much; of fewer requests than the window has, it must be more."""
        num, whole = len(tally.entries), self._settings.window
        doubt = 1.5 * (1 / math.sqrt(num) - 1 / math.sqrt(whole)) if num < whole else 0.0
        usual = max(self._usual, self._floor)
        return max(self._settings.share, usual + _MARGIN if usual else 0.0) + doubt

    def _sit_out(self, seen: "_Seen", url: str) -> bool:
        """Waits for an outage to pass. Whether it was one, and has."""
        started = time.monotonic()
        wait = self._first_wait_seconds
        while True:
            left = started + self._settings.patience_seconds - time.monotonic()
            if self._stopped.wait(max(0.0, min(wait, left))):
                return False
            finding = self._probe(seen)
            if finding.num_back >= seen.num_to_expect:
                self._end(seen, url, has_passed=True)
                return True
            if self._is_like_that(finding):
                self._end(seen, url, has_passed=False)
                return False
            if time.monotonic() >= started + self._settings.patience_seconds:
                self.outage = seen.error(finding, time.monotonic() - started)
                self.stop()
                return False
            wait = min(2 * wait, _LONGEST_WAIT_SECONDS)

    def _probe(self, seen: "_Seen") -> "_Finding":
        witnesses = seen.witnesses or self._late_witnesses()
        urls = [*seen.failed, *witnesses]
        with ThreadPoolExecutor(len(urls), thread_name_prefix="probe") as threads:
            answers = list(threads.map(self._ask, urls))
        num_failed = len(seen.failed)
        return _Finding(sum(answers[:num_failed]), sum(answers[num_failed:]), len(witnesses))

    def _late_witnesses(self) -> list[str]:
        """What has worked since fetching was paused: requests that were under way then."""
        with self._changed:
            worked = {e.host: e.url for e in self._tallies[0].entries if e.is_witness}
        return list(worked.values())[-_NUM_PROBES:]

    def _is_like_that(self, finding: "_Finding") -> bool:
        """Whether the network works, and the list is as bad as it looks."""
        if self._has_past and self.is_first_round:
            return False
        return finding.num_witnesses > 0 and finding.share_of_witnesses >= 0.5

    def _end(self, seen: "_Seen", url: str, *, has_passed: bool) -> None:
        with self._changed:
            for entry in self._tallies[0].entries:
                if not has_passed:
                    self._settle(entry)
                elif entry.kind is not None and entry.url != url:
                    self._to_ask_again.add(entry.url)
            if not has_passed:
                self._floor = seen.share
            self._tallies = [_Tally(tally.size) for tally in self._tallies]


@dataclass(frozen=True, slots=True)
class _Finding:
    """What came of one round of probes."""

    num_back: int
    """URLs that had failed, and answer."""
    num_answering: int
    """URLs that had worked, and still do."""
    num_witnesses: int

    @property
    def share_of_witnesses(self) -> float:
        return self.num_answering / self.num_witnesses


@dataclass(frozen=True, slots=True)
class _Seen:
    """What an outage looked like when it was noticed."""

    num_finished: int
    kinds: Counter[str]
    hosts: Counter[str]
    """With evidence."""
    failed: list[str]
    """Some URLs with evidence, of different hosts where there are."""
    witnesses: list[str]
    usual: float

    @classmethod
    def of(
        cls, entries: Sequence[_Finished], witnesses: Mapping[str, str], usual: float
    ) -> "_Seen":
        """What the last requests were like."""
        bad = [entry for entry in entries if entry.kind is not None]
        worked = witnesses or {e.host: e.url for e in entries if e.is_witness}
        by_host = {entry.host: entry.url for entry in bad}
        failed = dict.fromkeys([*reversed(by_host.values()), *(entry.url for entry in bad)])
        return cls(
            num_finished=len(entries),
            kinds=Counter(entry.kind for entry in bad if entry.kind is not None),
            hosts=Counter(entry.host for entry in bad),
            failed=list(failed)[:_NUM_PROBES],
            witnesses=list(worked.values())[-_NUM_PROBES:],
            usual=usual,
        )

    @property
    def share(self) -> float:
        """Of evidence."""
        return self.kinds.total() / self.num_finished

    @property
    def num_to_expect(self) -> float:
        """Probes that come back when the outage has passed: half of those that it explains, for
        some fail as usual."""
        return max(1.0, 0.5 * (1 - self.usual / self.share) * len(self.failed))

    def error(self, finding: _Finding, waited_seconds: float) -> OutageError:
        """What to tell when patience has run out."""
        kinds = ", ".join(f"{kind} {num} times" for kind, num in self.kinds.most_common())
        hosts = f"{len(self.hosts)} hosts" if len(self.hosts) > 1 else f"host {min(self.hosts)}"
        worked = (
            f", and {finding.num_answering} of {finding.num_witnesses} that had worked"
            if finding.num_witnesses
            else ""
        )
        return OutageError(
            f"fetching was stopped: {self.kinds.total()} of the last {self.num_finished} requests "
            f"({self.share:.0%}, usual is {self.usual:.0%}) failed in a way that the list does not "
            f"explain: {kinds} (at {hosts}). For {waited_seconds:.0f} s nothing was asked but a "
            f"few URLs: of those that had failed, {finding.num_back} of {len(self.failed)} answer "
            f"now{worked}. Mend name resolution, network or proxy, or wait until servers accept "
            "requests again, and run the same command again: nothing of this shard was published. "
            "If the list is like that, set fetch.outage.share to 1"
        )
