"""Python's cyclic garbage collector, put off while many objects are made that all stay.

It looks at every live object again and again as their number grows: of planning a corpus of 100,000
shards that is a fifth of the time. What it costs: cycles that become garbage meanwhile stay until
it runs again.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No cyclic collection within; afterwards as it was before."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
