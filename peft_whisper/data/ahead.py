"""Work done in threads a little before its results are asked for."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def in_order(
    make: Callable[[Item], Made], items: Iterable[Item], threads: int, ahead: int
) -> Iterator[Made]:
    """Yield `make(item)` in the order of the items, made up to `ahead` items before it is due.

    Items are taken in the caller's thread. It pays where `make` releases Python's lock, as
    decoders, hashes and tensor operations do. An exception comes up where its result was due.
    """
    waiting: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        try:
            for item in items:
                waiting.append(pool.submit(make, item))
                if len(waiting) > ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()
