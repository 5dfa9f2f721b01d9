"""The batches of a ``DataLoader``: held in memory if they are small, and otherwise read again at every product.

A loader that is read again must give the same data. Its readings are therefore compared by a checksum of each batch.
The second reading starts from other states of the random generators, so that it reveals random augmentation.
"""

import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils.data import DataLoader

from hessian_tools.batches import Batch, as_tensor, cast_like, refuse_random_loader, refuse_unusable
from hessian_tools.outputs import tensors_of
from hessian_tools.progress import Progress, ProgressCounter
from hessian_tools.random_states import random_states_from

_END = object()  # what next() returns at the end of a loader


@dataclass(frozen=True, eq=False)
class LoaderBatches(Sequence[Batch]):
    """A sequence of batches that holds none but the first and the largest: each pass over it reads the loader again.

    of_network: whether the batches are for a network, so that a list [x, y] of the loader becomes a tuple (x, y). like:
    a tensor with the dtype and the device to which every batch is moved. checksums: one for each batch of the first
    reading. first, largest: these two batches, as they came from the loader. progress: called with (done, total)
    batches at each reading.

    Every pass raises ValueError where the loader gives other data than at its first reading.
    """

    loader: DataLoader[Any]
    of_network: bool
    like: Tensor
    checksums: tuple[int, ...]
    first: Batch
    largest: Batch
    progress: Progress | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.checksums)

    def __iter__(self) -> Iterator[Batch]:
        counter = ProgressCounter(len(self), self.progress)
        count = 0
        for count, batch in enumerate(read(self.loader, of_network=self.of_network, seed=1), start=1):
            if count > len(self):
                break
            if checksum(batch) != self.checksums[count - 1]:
                raise ValueError(_other_data(f"in batch {count - 1}"))
            yield cast_like(batch, self.like)
            counter.add(1)
        if count != len(self):
            raise ValueError(_other_data(f"{count} batches in place of {len(self)}"))

    def __getitem__(self, index: Any) -> Any:
        """The first batch, which is held; any other index reads the loader."""
        return cast_like(self.first, self.like) if index == 0 else list(self)[index]

    def cast(self, like: Tensor) -> "LoaderBatches":
        """The same batches, moved to the dtype and the device of another tensor."""
        return replace(self, like=like.new_empty(0))


def loader_batches(
    loader: DataLoader[Any], *, of_network: bool, like: Tensor, keep: int | None, progress: Progress | None = None
) -> list[Batch] | LoaderBatches:
    """The batches of a loader: a list if they take at most ``keep`` bytes in all, otherwise LoaderBatches.

    keep: None for no limit. of_network, like, progress: as for :class:`LoaderBatches`. Raises ValueError for a loader
    that draws its examples at random, leaves some out, gives none, or gives other data when its first batch is read
    again.
    """
    refuse_random_loader(loader)
    kept: list[Batch] | None = []  # None once the batches take more than ``keep`` bytes
    checksums: list[int] = []  # computed only if the batches are not kept
    first, largest, largest_bytes, total_bytes = None, None, -1, 0
    # Without a length the number of batches is not known, and no progress is reported.
    counter = ProgressCounter(len(loader), progress) if hasattr(loader.dataset, "__len__") else ProgressCounter(0)
    for batch in read(loader, of_network=of_network, seed=0):
        refuse_unusable(batch, like)
        first = batch if first is None else first
        size = bytes_of(batch, like)
        total_bytes += size
        if size > largest_bytes:
            largest, largest_bytes = batch, size
        if kept is None:
            checksums.append(checksum(batch))
        else:
            kept.append(batch)
            if keep is not None and total_bytes > keep:
                checksums, kept = [checksum(each) for each in kept], None
        counter.add(1)
    if first is None:
        raise ValueError("the DataLoader gives no batch; give one whose dataset holds examples")
    again = next(read(loader, of_network=of_network, seed=1), None)
    if again is None:
        raise ValueError(_other_data("no batch at all"))
    if checksum(again) != (checksums[0] if kept is None else checksum(first)):
        raise ValueError(_other_data("in batch 0"))
    if kept is not None:
        return kept
    return LoaderBatches(loader, of_network, like.new_empty(0), tuple(checksums), first, largest, progress)


def read(loader: DataLoader[Any], *, of_network: bool, seed: int) -> Iterator[Batch]:
    """One reading of a loader. The global random generators start from ``seed``, and are left as they were."""
    with random_states_from(seed), torch.device("cpu"):
        batches = iter(loader)  # draws a seed for its workers on the default device, here the CPU
    while True:
        with random_states_from(seed):
            batch = next(batches, _END)
        if batch is _END:
            return
        yield tuple(batch) if of_network and isinstance(batch, list) else batch


def bytes_of(batch: Batch, like: Tensor) -> int:
    """The bytes of a batch's tensors once the floating-point ones have the dtype of ``like``."""
    shapes = cast_like(batch, torch.empty(0, dtype=like.dtype, device="meta"))
    return sum(leaf.numel() * leaf.element_size() for leaf in tensors_of(shapes))


def checksum(batch: Batch) -> int:
    """A checksum of all numbers of a batch, and of their shapes and dtypes.

    >>> checksum((torch.zeros(2), "a")) == checksum((torch.zeros(2), "a")) != checksum((torch.ones(2), "a"))
    True
    """
    total = 0
    for leaf in pytree.tree_leaves(batch):
        if isinstance(leaf, Mapping):  # of a class that pytree does not know, such as BatchEncoding
            total = zlib.crc32(str(checksum(dict(leaf))).encode(), total)
            continue
        leaf = as_tensor(leaf)
        if isinstance(leaf, Tensor) and leaf.layout is torch.strided:
            total = zlib.crc32(repr((tuple(leaf.shape), leaf.dtype)).encode(), total)
            total = zlib.crc32(leaf.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data, total)
        elif isinstance(leaf, str | bytes | int | float | None):  # the repr of any other object may contain its address
            total = zlib.crc32(repr(leaf).encode(), total)
    return total


def _other_data(what: str) -> str:
    """The error message for a loader that gave other data. what: which data differ."""
    return (
        f"the DataLoader gave other data when it was read again ({what}): its dataset draws random numbers, as random "
        "augmentation does, or can be read only once; take the random transforms off, or give list(loader), which "
        "keeps one reading"
    )
