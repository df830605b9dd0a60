"""Read the next inputs while an engine computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterable[T], count: int) -> Generator[T, None, None]:
    """Yield the items in their order, taken in a thread of their own, up to `count` of them before they are asked for.

    What `items` raises is raised here, in its turn. Closing waits for the one item that is being read.
    """
    source, end = iter(items), object()
    pool = ThreadPoolExecutor(1, "read-ahead")
    try:
        waiting = deque(pool.submit(next, source, end) for _ in range(count))
        while (item := waiting.popleft().result()) is not end:
            waiting.append(pool.submit(next, source, end))
            yield item  # type: ignore[misc]
    finally:
        pool.shutdown(cancel_futures=True)
