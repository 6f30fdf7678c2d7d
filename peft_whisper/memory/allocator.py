"""What the CUDA caching allocator makes of a run: how much it hands out, how much it holds.

A model of `c10/cuda/CUDACachingAllocator.cpp` (torch 2.14) with its default settings and one
stream: the same blocks, splits, merges and flushes, without memory behind them. All sizes in bytes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20
ROUND = 512  # every size is rounded up to a multiple of this
SMALL = MIB  # the largest request of the small pool
SMALL_SEGMENT = 2 * MIB  # what the small pool asks the driver for
LARGE_SEGMENT = 20 * MIB  # what the large pool asks for, for requests below OWN_SEGMENT
OWN_SEGMENT = 10 * MIB  # from here on a request gets a segment of its size
SEGMENT_ROUND = 2 * MIB  # to a multiple of which that is rounded up
# One for the thread of the forward pass and one for that of the backward pass: 2 x 4 MiB and
# 8 x 16 KiB each (aten/src/ATen/cuda/CublasHandlePool.cpp; from Hopper on 32 MiB each).
CUBLAS_WORKSPACE = 2 * 8_519_680

USED, FREE, UNMAPPED = range(3)  # the states of a block; an unmapped one has an address only
ENDLESS = 2**60  # more than any card has


@dataclass(frozen=True)
class Replay:
    """What a run took of the card, in bytes, up to its end or to where it no longer fitted.

    `allocated` is the peak of `max_memory_allocated`, which counts whole blocks: 512 bytes are the
    least, and a block of the large pool keeps up to 1 MiB that is too little to split off.
    `reserved` is the peak of `max_memory_reserved`; `flushes` counts how often a full card made
    the allocator give its cache back (`num_alloc_retries`).
    """

    allocated: int
    reserved: int
    flushes: int
    fits: bool


class Block:
    """A stretch of a segment, linked to its neighbours there."""

    __slots__ = ("address", "after", "before", "size", "state")

    def __init__(
        self, address: int, size: int, state: int, before: Block | None, after: Block | None
    ) -> None:
        self.address = address
        self.size = size
        self.state = state
        self.before = before
        self.after = after
        if before is not None:
            before.after = self
        if after is not None:
            after.before = self


class Pool:
    """The free blocks for small or for large requests, smallest first, then lowest address."""

    __slots__ = ("free", "least_rest", "page", "unmapped")

    def __init__(self, small: bool, expandable: bool) -> None:
        self.page = SMALL_SEGMENT if small else LARGE_SEGMENT
        # A block is split when at least this much is left of it.
        self.least_rest = ROUND if small or expandable else SMALL + ROUND
        self.free: list[tuple[int, int, Block]] = []
        self.unmapped: list[tuple[int, Block]] = []  # by address; of expandable segments

    def put(self, block: Block) -> None:
        insort(self.free, (block.size, block.address, block))

    def drop(self, block: Block) -> None:
        del self.free[bisect_left(self.free, (block.size, block.address))]

    def merge(self, block: Block) -> None:
        """Join a free block, itself in no list, with its free neighbours."""
        for near in (block.before, block.after):
            if near is not None and near.state == FREE:
                self.drop(near)
                _swallow(block, near)


class Allocator:
    """The state of the allocator between two requests.

    `limit` is what the driver has to give, in bytes; None for an endless card. `expandable` is
    `PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True`.
    """

    def __init__(self, limit: int | None = None, expandable: bool = False) -> None:
        self.limit = ENDLESS if limit is None else limit
        self.expandable = expandable
        self.small = Pool(True, expandable)
        self.large = Pool(False, expandable)
        self.allocated = self.peak_allocated = 0
        self.reserved = self.peak_reserved = 0
        self.flushes = 0
        self.next_address = 0  # the driver's own choice is unknown; it only breaks ties

    def malloc(self, size: int) -> Block | None:
        """The block that serves a request of `size` > 0 bytes; None when it does not fit."""
        size = -(-size // ROUND) * ROUND
        pool = self.small if size <= SMALL else self.large
        block = self._cached(pool, size) or self._grow(pool, size)
        if block is None:
            # release_available_cached_blocks does nothing without a max_split_size_mb.
            self.flush()
            block = self._grow(pool, size)
            if block is None:
                return None
        rest = block.size - size
        if rest >= pool.least_rest:
            pool.put(Block(block.address + size, rest, FREE, block, block.after))
            block.size = size
        block.state = USED
        self.allocated += block.size
        if self.allocated > self.peak_allocated:
            self.peak_allocated = self.allocated
        return block

    def free(self, block: Block, requested: int) -> None:
        """Return to its pool, merged with free neighbours, what `malloc(requested)` gave."""
        self.allocated -= block.size
        pool = self.small if requested <= SMALL else self.large
        block.state = FREE
        pool.merge(block)
        pool.put(block)

    def _cached(self, pool: Pool, size: int) -> Block | None:
        """The best fit among the free blocks: the smallest, then the lowest address."""
        free = pool.free
        at = bisect_left(free, (size,))
        if at == len(free):
            return None
        if self.expandable:
            # A block that can grow counts as what it can grow to, so the segment's end is kept.
            while at + 1 < len(free) and _reach(free[at + 1][2]) < _reach(free[at][2]):
                at += 1
        return free.pop(at)[2]

    def _grow(self, pool: Pool, size: int) -> Block | None:
        """A block of at least `size` bytes from the driver; None when the card is full."""
        if self.expandable:
            return self._expand(pool, size)
        segment = pool.page if size < OWN_SEGMENT else -(-size // SEGMENT_ROUND) * SEGMENT_ROUND
        if not self._reserve(segment):
            return None
        address = self.next_address
        self.next_address += segment
        return Block(address, segment, FREE, None, None)

    def _reserve(self, size: int) -> bool:
        if self.reserved + size > self.limit:
            return False
        self.reserved += size
        self.peak_reserved = max(self.peak_reserved, self.reserved)
        return True

    def _expand(self, pool: Pool, size: int) -> Block | None:
        """Map pages at the lowest address where free and unmapped blocks make room for `size`."""
        rooms = (start for _, gap in pool.unmapped if (start := _room(gap, size)) is not None)
        block = next(rooms, None) or self._segment(pool)
        if block.state == UNMAPPED and not self._map(pool, block, size):
            return None
        while block.size < size:
            gap = block.after
            assert gap is not None and gap.state == UNMAPPED
            if not self._map(pool, gap, size - block.size):
                return None
            block = gap
        pool.drop(block)
        return block

    def _segment(self, pool: Pool) -> Block:
        """The addresses of a new expandable segment: those of the card and an eighth more."""
        address = -(-self.next_address // LARGE_SEGMENT) * LARGE_SEGMENT
        size = -(-(self.limit + self.limit // 8 or 1) // pool.page) * pool.page
        self.next_address = address + size
        segment = Block(address, size, UNMAPPED, None, None)
        insort(pool.unmapped, (address, segment))
        return segment

    def _map(self, pool: Pool, block: Block, size: int) -> bool:
        """Put pages for `size` bytes behind the start of an unmapped block, all or none."""
        mapped = -(-min(size, block.size) // pool.page) * pool.page
        if not self._reserve(mapped):
            return False
        del pool.unmapped[bisect_left(pool.unmapped, (block.address,))]
        if mapped < block.size:
            address = block.address + mapped
            rest = Block(address, block.size - mapped, UNMAPPED, block, block.after)
            insort(pool.unmapped, (address, rest))
            block.size = mapped
        block.state = FREE
        pool.merge(block)
        pool.put(block)
        return True

    def flush(self) -> None:
        """Give the driver back what is wholly free: segments, or pages of expandable ones."""
        self.flushes += 1
        for pool in (self.large, self.small):
            if self.expandable:
                for *_, block in list(pool.free):
                    self._unmap(pool, block)
                continue
            whole = [b for *_, b in pool.free if b.before is None and b.after is None]
            for block in whole:
                pool.drop(block)
                self.reserved -= block.size

    def _unmap(self, pool: Pool, block: Block) -> None:
        """Take the whole pages of a free block away; what is left on either side stays free."""
        page, end = pool.page, block.address + block.size
        start, stop = -(-block.address // page) * page, end // page * page
        if start >= stop:
            return
        pool.drop(block)
        self.reserved -= stop - start
        if start > block.address:
            pool.put(Block(block.address, start - block.address, FREE, block.before, block))
        if end > stop:
            pool.put(Block(stop, end - stop, FREE, block, block.after))
        block.address, block.size, block.state = start, stop - start, UNMAPPED
        for near in (block.before, block.after):
            if near is not None and near.state == UNMAPPED:
                del pool.unmapped[bisect_left(pool.unmapped, (near.address,))]
                _swallow(block, near)
        if block.before is not None or block.after is not None:  # else the segment is returned
            insort(pool.unmapped, (block.address, block))


def _swallow(block: Block, near: Block) -> None:
    """Give a neighbour's bytes to the block."""
    if near.address < block.address:
        block.address = near.address
        block.before = near.before
        if near.before is not None:
            near.before.after = block
    else:
        block.after = near.after
        if near.after is not None:
            near.after.before = block
    block.size += near.size


def _reach(block: Block) -> int:
    after = block.after
    return block.size + (after.size if after is not None and after.state == UNMAPPED else 0)


def _room(gap: Block, size: int) -> Block | None:
    """The first block of the room for `size` bytes that an unmapped block is part of, if any."""
    start: Block = gap
    if gap.before is not None and gap.before.state != USED:
        start = gap.before
    block: Block | None = start
    while size > 0 and block is not None and block.state != USED:
        size -= block.size
        block = block.after
    return start if size <= 0 else None


def replay(
    events: Sequence[int],
    sizes: Sequence[int],
    *,
    limit: int | None = None,
    expandable: bool = False,
    standing: int = CUBLAS_WORKSPACE,
) -> Replay:
    """Run births and deaths of storages through the allocator.

    `events`: i >= 0 is the birth of storage i of `sizes[i]` bytes, ~i its death. `standing` bytes
    are allocated before them and never freed. With a `limit` (bytes the driver can give) the
    replay stops at the first request that does not fit. Raises KeyError if a storage dies that
    does not live.
    """
    card = Allocator(limit, expandable)
    malloc, free = card.malloc, card.free
    live: dict[int, Block] = {}
    fits = standing == 0 or malloc(standing) is not None
    for event in events if fits else ():
        if event < 0:
            if size := sizes[~event]:  # torch asks for nothing when a storage is empty
                free(live.pop(~event), size)
        elif size := sizes[event]:
            block = malloc(size)
            if block is None:
                fits = False
                break
            live[event] = block
    return Replay(card.peak_allocated, card.peak_reserved, card.flushes, fits)
