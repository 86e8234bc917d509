"""A checksum of tensors' bytes that sees where each byte is: equal checksums mean that nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from threading import Thread

import torch
from torch import Tensor

_WORDS = 512  # 64-bit words under one checksum
_ROW = 8 * _WORDS  # bytes: 4 KiB
_BLOCK = 2048  # rows that a CPU's thread takes at a time: 8 MiB
_LARGE_BLOCK = 16384  # elsewhere: 64 MiB
_THREADS = 4  # at most: reading memory, not arithmetic, takes the time


def checksum(tensors: Sequence[Tensor]) -> list[Tensor]:
    r"""64 or 128 bits for every 4 KiB of the tensors' memory: one long tensor for each device and kind of sum.

    The 64-bit words :math:`w_j` of a row, with fixed pseudo-random odd keys :math:`k_j, k'_j`, give

    .. math:: \sum_j k_j w_j \bmod 2^{64} \quad\text{and}\quad \sum_j k'_j \lfloor w_j / 2^{32} \rfloor \bmod 2^{64}

    A sum modulo :math:`2^{64}` loses the top bits of what it adds, in the first one the signs and exponents; the second
    has them in the middle. On a CPU, whole rows of tensors with 4 bytes or more per element get one sum alone, over
    words that begin half an element later: it has signs and exponents in the middle too, and reads the memory once.

    A change within one word always shows, and so do two flipped signs in a row (no two keys are equal or opposite
    modulo :math:`2^{17}`, which is what is left above a sign). Any other change that was not made with the keys in
    view, two values swapped or all signs flipped, goes unnoticed with a chance of at most :math:`2^{-17}` per row that
    it touches; of about :math:`2^{-63}` where it reaches the lowest bits. Sums of integers do not depend on the order
    of summing: every thread count gives the same bits. Nothing is copied to another device and nothing waits for one.
    """
    return Checksum(tensors)()


class Checksum:
    """The :func:`checksum` of some tensors, to be taken again and again: each call reads their memory as it is now.

    Args:
        tensors: whose memory it is. They must stay where they are; if one of them gets other memory, make another.
    """

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self._small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
        self._large: dict[torch.device, list[Tensor]] = {}  # which are copied, if need be, at each call
        self._rests: list[Tensor] = []
        self._blocks: list[Tensor] = []
        for tensor in tensors:
            tensor = tensor.detach()
            if tensor.numel() * tensor.itemsize < _ROW:
                self._small.setdefault((tensor.device, tensor.dtype), []).append(tensor)
            elif tensor.device.type == "cpu" and tensor.itemsize >= 4 and not _copied(tensor):
                self._shift(_bytes(tensor), 2 if tensor.is_complex() else tensor.itemsize // 2)
            else:
                self._large.setdefault(tensor.device, []).append(tensor)

    def _shift(self, memory: Tensor, shift: int) -> None:
        rows = (len(memory) - shift) // _ROW
        end = shift + rows * _ROW
        self._rests += memory[:shift], memory[end:]
        if rows:
            words = torch.frombuffer(memory.numpy(), dtype=torch.int64, offset=shift, count=rows * _WORDS)
            self._blocks += words.view(-1, _WORDS).split(_BLOCK)

    def __call__(self) -> list[Tensor]:
        """The sums, as the memory is now."""
        singles = [_single_sums(self._blocks)] if self._blocks else []  # first, while torch's threads are at rest
        large = {device: [_bytes(tensor) for tensor in tensors] for device, tensors in self._large.items()}
        if self._rests:
            large.setdefault(torch.device("cpu"), []).append(torch.cat(self._rests))
        for (device, _), tensors in self._small.items():
            together = torch.cat([tensor.reshape(-1) for tensor in tensors])
            large.setdefault(device, []).append(_bytes(together))
        return singles + [_rows(memories) for memories in large.values()]


def _single_sums(blocks: Sequence[Tensor]) -> Tensor:
    """The first sum of each row, several threads at once."""
    key = _keys(torch.device("cpu"))[0]
    threads = min(torch.get_num_threads(), _THREADS, len(blocks))
    sums = [torch.empty(len(block), dtype=torch.int64) for block in blocks]

    parts: list[list[int]] = [[] for _ in range(threads)]
    rows = [0] * threads
    for k in sorted(range(len(blocks)), key=lambda k: -len(blocks[k])):  # the largest first, to whoever has least
        part = rows.index(min(rows))
        parts[part].append(k)
        rows[part] += len(blocks[k])

    def work(part: int) -> None:
        for k in parts[part]:
            torch.mv(blocks[k], key, out=sums[k])

    others = [Thread(target=work, args=(first,)) for first in range(1, threads)]
    for thread in others:
        thread.start()
    work(0)
    for thread in others:
        thread.join()
    return torch.cat(sums)


def _rows(memories: Sequence[Tensor]) -> Tensor:
    whole = [memory[: len(memory) // _ROW * _ROW] for memory in memories]
    rest = torch.cat([memory[len(part) :] for memory, part in zip(memories, whole, strict=True)])
    padded = torch.nn.functional.pad(rest, (0, -len(rest) % _ROW))
    return torch.cat([_sums(part.view(torch.int64).view(-1, _WORDS)) for part in (*whole, padded) if len(part)], 1)


def same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two checksums are equal."""
    return len(one) == len(other) and all(
        a.device == b.device and torch.equal(a, b) for a, b in zip(one, other, strict=True)
    )


def _sums(rows: Tensor) -> Tensor:
    low_key, high_key = _keys(rows.device)
    parts = rows.split(_LARGE_BLOCK)
    return torch.cat([torch.stack([(p * low_key).sum(1), ((p >> 32) * high_key).sum(1)]) for p in parts], 1)


@lru_cache(maxsize=32)
def _keys(device: torch.device) -> Tensor:
    """Odd keys ``(2, 512)``; modulo 2^17 no two of one row are equal or opposite."""
    generator = torch.Generator().manual_seed(20240717)
    keys = torch.randint(-(2**63), 2**63 - 1, (2, _WORDS), generator=generator, dtype=torch.int64, device="cpu")
    halves = torch.stack([torch.randperm(2**15, generator=generator)[:_WORDS] for _ in keys])
    return (keys >> 17 << 17 | 2 * halves + 1).to(device)


def _bytes(tensor: Tensor) -> Tensor:
    """The tensor's memory, in the order in which it lies there, as uint8 at an address that 64-bit words may have."""
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not (tensor.is_contiguous() or _dense(tensor)):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    if not _aligned(flat):
        flat = flat.clone()
    return flat.view(torch.uint8)


def _copied(tensor: Tensor) -> bool:
    """Whether :func:`_bytes` gives a copy of the tensor's memory."""
    return tensor.is_conj() or not ((tensor.is_contiguous() or _dense(tensor)) and _aligned(tensor))


def _aligned(tensor: Tensor) -> bool:
    return not (tensor.storage_offset() * tensor.itemsize % 8 or tensor.data_ptr() % 8)


def _dense(tensor: Tensor) -> bool:
    """Whether the values fill their stretch of memory, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
