"""What the CPU's allocator really did, from torch's own log: the tracer is held against it."""

from __future__ import annotations

import gc
from collections.abc import Callable
from itertools import accumulate

import torch
from torch._subclasses.fake_tensor import FakeTensor
from torch.profiler import ProfilerActivity, profile


def logged_peak(work: Callable[[], object]) -> int:
    """Most bytes allocated while `work` runs, all that was there before included."""
    standing = alive()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as log:
        work()
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in log.profiler.kineto_results.events()
        if event.name() == "[memory]"
    )
    return standing + max(accumulate(size for _, size in changes))


def alive() -> int:
    """Bytes of every tensor there is now; those without storage are not."""
    gc.collect()
    kinds = (torch.Tensor, torch.nn.Parameter)
    tensors = (one for one in gc.get_objects() if type(one) in kinds)
    real = (one for one in tensors if not isinstance(one, FakeTensor))
    storages = (one.untyped_storage() for one in real)
    return sum({one.data_ptr(): one.nbytes() for one in storages}.values())
