"""A checksum of tensors' bytes that sees where each byte is: equal checksums mean that nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import torch
from torch import Tensor

_WORDS = 512  # 64-bit words under one checksum
_ROW = 8 * _WORDS  # bytes: 4 KiB
_BLOCK = 1024  # rows that a CPU's thread takes at a time: 4 MiB
_LARGE_BLOCK = 16384  # elsewhere: 64 MiB
_THREADS = 4  # at most: reading memory, not arithmetic, takes the time


def checksum(tensors: Sequence[Tensor]) -> list[Tensor]:
    r"""64 or 128 bits for every 4 KiB of the tensors' memory: one long tensor for each device and kind of sum.

    The 64-bit words :math:`w_j` of a row, with fixed pseudo-random odd keys :math:`k_j, k'_j`, give

    .. math:: \sum_j k_j w_j \bmod 2^{64} \quad\text{and}\quad \sum_j k'_j \lfloor w_j / 2^{32} \rfloor \bmod 2^{64}

    A sum modulo :math:`2^{64}` loses the top bits of what it adds, in the first one the signs and exponents; the second
    has them in the middle. On a CPU, tensors with 4 bytes or more per element get one sum alone, over words that begin
    half an element later: it has signs and exponents in the middle too, and reads the memory once.

    A change within one word always shows, and so do two flipped signs in a row (no two keys are equal or opposite
    modulo :math:`2^{17}`, which is what is left above a sign). Any other change that was not made with the keys in
    view, two values swapped or all signs flipped, goes unnoticed with a chance of at most :math:`2^{-17}` per row that
    it touches; of about :math:`2^{-63}` where it reaches the lowest bits. Sums of integers do not depend on the order
    of summing: every thread count gives the same bits. Nothing is copied to another device and nothing waits for one.
    """
    large: dict[torch.device, list[Tensor]] = {}
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    shifted: list[tuple[Tensor, int]] = []
    for tensor in tensors:
        if tensor.numel() * tensor.itemsize < _ROW:
            small.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach().reshape(-1))
        elif tensor.device.type == "cpu" and tensor.itemsize >= 4:
            shifted.append((_bytes(tensor), 2 if tensor.is_complex() else tensor.itemsize // 2))
        else:
            large.setdefault(tensor.device, []).append(_bytes(tensor))
    rests = [end for memory, shift in shifted for end in _ends(memory, shift)]
    if rests:
        large.setdefault(rests[0].device, []).append(torch.cat(rests))
    for (device, _), together in small.items():
        large.setdefault(device, []).append(_bytes(torch.cat(together)))
    sums = [_rows(memories) for memories in large.values()]
    return [*sums, _shifted_sums(shifted)] if shifted else sums


def _shifted_sums(memories: Sequence[tuple[Tensor, int]]) -> Tensor:
    """The sums of all words after the shift, whole rows first, several threads at once."""
    words = [_words(memory, shift) for memory, shift in memories]
    whole = [some[: len(some) // _WORDS * _WORDS] for some in words]
    blocks = [block for some in whole for block in some.view(-1, _WORDS).split(_BLOCK)]
    threads = min(torch.get_num_threads(), _THREADS, len(blocks))
    key = _keys(torch.device("cpu"))[0]
    sums = list[Tensor]()
    with ThreadPoolExecutor(threads) as pool:
        for some in pool.map(lambda k: [torch.mv(block, key) for block in blocks[k::threads]], range(threads)):
            sums += some
    taken = [k for first in range(threads) for k in range(first, len(blocks), threads)]
    ordered = [part for _, part in sorted(zip(taken, sums, strict=True), key=lambda pair: pair[0])]
    ends = [some[len(rows) :] for some, rows in zip(words, whole, strict=True)]
    return torch.cat([*ordered, torch.stack([torch.dot(end, key[: len(end)]) for end in ends])])


def _words(memory: Tensor, shift: int) -> Tensor:
    return torch.frombuffer(memory.numpy(), dtype=torch.int64, offset=shift, count=(len(memory) - shift) // 8)


def _ends(memory: Tensor, shift: int) -> tuple[Tensor, Tensor]:
    """The bytes before the first and after the last word."""
    return memory[:shift], memory[shift + (len(memory) - shift) // 8 * 8 :]


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
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor.resolve_conj())
    if not (tensor.is_contiguous() or _dense(tensor)):
        tensor = tensor.contiguous()
    flat = tensor.as_strided((tensor.numel(),), (1,), tensor.storage_offset())
    if flat.storage_offset() * flat.itemsize % 8 or flat.data_ptr() % 8:
        flat = flat.clone()
    return flat.view(torch.uint8)


def _dense(tensor: Tensor) -> bool:
    """Whether the values fill their stretch of memory, each once, in whatever order."""
    expected = 1
    for stride, size in sorted(zip(tensor.stride(), tensor.shape, strict=True)):
        if size != 1:
            if stride != expected:
                return False
            expected *= size
    return True
