"""What an operator of torch launches on a card, and the bytes that its kernels read and write.

How many kernels an operator takes, and how lists are cut into them, is written here from what is
known of aten/src/ATen/native/cuda: no profiler on a card has confirmed it yet. Bytes are what must
move: each operand once, no cache misses, and nothing of what a kernel holds for itself, such as
flash attention's fp32 sums.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from math import prod
from typing import Any

from torch import Tensor

MAKES_ROOM = ("empty", "new_empty", "empty_like", "empty_strided", "empty_permuted")
# Their results are written, and nothing of their input is read.
FROM_SHAPE = ("zeros_like", "ones_like", "full_like", "new_zeros", "new_ones", "new_full")
OVERWRITES = (
    "copy_",
    "_foreach_copy_",
    "zero_",
    "fill_",
    "normal_",
    "uniform_",
    "bernoulli_",
    "random_",
)
READS_ROWS = ("embedding", "index", "gather", "index_select")  # of the first operand, some only
WRITES_ROWS = ("scatter_", "scatter_add_", "index_put_", "index_add_", "index_copy_")
# Said to be written by their schemas, and not (what else these are given, is).
ONLY_READ = {
    "aten::_fused_adamw_": ("grads",),
    "bitsandbytes::optimizer_update_8bit_blockwise": ("g", "qmap1", "qmap2"),
}
# Of multi_tensor_apply (native/cuda/MultiTensorApply.cuh), by lists walked at once.
CHUNK, BLOCKS, TENSORS = 65_536, 320, (110, 64, 48, 36, 30)
CONCATENATED = 128  # tensors in one kernel (native/cuda/Shape.cu)


@dataclass(frozen=True)
class Launch:
    """Kernels, and the bytes that they read and write together."""

    kernels: int = 0
    moved: int = 0


def launch_of(func: Any, args: Any, kwargs: Any, out: Any) -> Launch:
    """What the operator `func` launched that gave `out`; nothing for a view.

    To be called after it ran. Tensors that are not on a card (scalars mostly) move nothing.
    """
    name = func._schema.name.removeprefix("aten::")
    if name.startswith(MAKES_ROOM):
        return Launch()
    given = {id(one): one for one in tensors((args, kwargs.values())) if on_card(one)}
    changed = {id(one): one for one in _changed(func, args, kwargs) if on_card(one)}
    storages = {one.untyped_storage()._cdata for one in given.values()}
    made = [
        one for one in tensors(out) if on_card(one) and one.untyped_storage()._cdata not in storages
    ]
    if not (changed or made):
        return Launch()
    kernels = KERNELS[name](args) if name in KERNELS else 1
    if name in WRITES_ROWS:
        touched = sum(map(nbytes, given.values())) - nbytes(args[0])
        values = [one for one in tensors(args[1:]) if one.dtype == args[0].dtype]
        return Launch(kernels, touched + sum(map(nbytes, values)))
    written = sum(map(nbytes, made)) + sum(map(nbytes, changed.values()))
    if name in FROM_SHAPE:
        return Launch(kernels, written)
    if name in OVERWRITES or func._overloadname == "out":
        given = {key: one for key, one in given.items() if key not in changed}
    read = sum(map(nbytes, given.values()))
    if name in READS_ROWS:
        read += sum(map(nbytes, made)) - nbytes(args[0])
    return Launch(kernels, read + written)


def nbytes(tensor: Tensor) -> int:
    """Bytes of the elements that are really there: an expanded dimension counts once."""
    there = zip(tensor.shape, tensor.stride(), strict=True)
    return prod(size for size, stride in there if stride) * tensor.itemsize


def on_card(tensor: Tensor) -> bool:
    return tensor.device.type == "cuda"


def tensors(thing: Any) -> Iterator[Tensor]:
    """Tensors in an operator's arguments or results, which are lists of lists at most."""
    if isinstance(thing, Tensor):
        yield thing
    elif isinstance(thing, Iterable) and not isinstance(thing, str):
        for one in thing:
            yield from tensors(one)


def _changed(func: Any, args: Any, kwargs: Any) -> Iterator[Tensor]:
    for place, name in _changed_arguments(func):
        yield from tensors(args[place] if place < len(args) else kwargs.get(name))


@cache
def _changed_arguments(func: Any) -> list[tuple[int, str]]:
    schema = func._schema
    kept = ONLY_READ.get(schema.name, ())
    return [
        (place, argument.name)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
        and argument.alias_info.is_write
        and argument.name not in kept
    ]


def _lists_at_once(lists: int) -> Callable[[Any], int]:
    """Kernels of an operator over so many lists of tensors (multi_tensor_apply)."""

    def count(args: Any) -> int:
        launches = blocks = held = 0
        for tensor in args[0]:
            chunks = -(-tensor.numel() // CHUNK)
            held += 1
            for chunk in range(1, chunks + 1):
                blocks += 1
                full = held == TENSORS[lists - 1] and chunk == chunks
                if full or blocks == BLOCKS:
                    launches, blocks, held = launches + 1, 0, int(chunk < chunks)
        return launches + bool(blocks)

    return count


def _norms(args: Any) -> int:
    return _lists_at_once(1)(args) + 2  # zeros before, the chunks' sums after


def _joined(args: Any) -> int:
    return -(-len(args[0]) // CONCATENATED)


# Where it is not one kernel.
KERNELS: dict[str, Callable[[Any], int]] = {
    "convolution": lambda args: 1 + (args[2] is not None),  # cuDNN's, and the bias
    "convolution_backward": lambda args: sum(args[-1]),
    "native_layer_norm_backward": lambda args: args[-1][0] + any(args[-1][1:]),
    "_scaled_dot_product_flash_attention_backward": lambda _: 3,  # delta, the products, dq's cast
    "_scaled_dot_product_efficient_attention_backward": lambda _: 2,  # delta, the products
    "embedding_dense_backward": lambda _: 2,  # zeros and sums
    "slice_backward": lambda _: 2,  # zeros and a copy
    "select_backward": lambda _: 2,
    "index_put": lambda _: 2,  # a copy, and the values
    "scatter": lambda _: 2,
    "scatter_add": lambda _: 2,
    "cat": _joined,
    "stack": _joined,
    "_foreach_norm": _norms,
    "_foreach_mul_": _lists_at_once(1),
    "_foreach_div_": _lists_at_once(1),
    "_foreach_add_": _lists_at_once(1),
    "_foreach_copy_": _lists_at_once(2),
    "_fused_adamw_": _lists_at_once(4),
}
