"""A checksum of tensors' bytes that sees where each byte is: equal checksums mean that nothing has changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch
from torch import Tensor

_WORDS = 512  # 64-bit words under one checksum
_ROW = 8 * _WORDS  # bytes: 4 KiB
_BLOCK = 256  # rows at a time on a CPU, so that they stay in its cache
_LARGE_BLOCK = 16384  # elsewhere: 64 MiB


def checksum(tensors: Sequence[Tensor]) -> list[Tensor]:
    r"""128 bits for every 4 KiB of the tensors' memory: one long tensor ``(2, rows)`` for each device.

    The 64-bit words :math:`w_j` of a row, with fixed pseudo-random odd keys :math:`k_j, k'_j`, give

    .. math:: \sum_j k_j w_j \bmod 2^{64} \quad\text{and}\quad \sum_j k'_j \lfloor w_j / 2^{32} \rfloor \bmod 2^{64}

    A change within one word always shows. Any other change that was not made with the keys in view, two values swapped
    or all signs flipped, goes unnoticed with a chance of at most :math:`2^{-32}`; of about :math:`2^{-63}` or less
    where it reaches the lowest bits. (A sum modulo :math:`2^{64}` loses the top bits of what it adds, here signs and
    exponents; the second sum has them in the middle.) Sums of integers do not depend on the order of summing: every
    thread count gives the same bits. Nothing is copied to another device and nothing waits for one.
    """
    large: dict[torch.device, list[Tensor]] = {}
    small: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for tensor in tensors:
        if tensor.numel() * tensor.itemsize < _ROW:
            small.setdefault((tensor.device, tensor.dtype), []).append(tensor.detach().reshape(-1))
        else:
            large.setdefault(tensor.device, []).append(_bytes(tensor))
    for (device, _), together in small.items():
        large.setdefault(device, []).append(_bytes(torch.cat(together)))
    return [_rows(memories) for memories in large.values()]


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
    if rows.device.type != "cpu":  # accelerators have no matrix product of integers
        parts = rows.split(_LARGE_BLOCK)
        return torch.cat([torch.stack([(p * low_key).sum(1), ((p >> 32) * high_key).sum(1)]) for p in parts], 1)
    sums = rows.new_empty((2, len(rows)))
    later = torch.frombuffer(rows.numpy(), dtype=torch.int64, offset=4, count=rows.numel() - 1)
    later = later[: rows[1:].numel()].view(-1, _WORDS)  # reading them costs less than shifting a copy
    for k in range(0, len(rows), _BLOCK):
        end = min(k + _BLOCK, len(rows) - 1)
        torch.mv(rows[k : k + _BLOCK], low_key, out=sums[0, k : k + _BLOCK])
        if k < end:
            torch.mv(later[k:end], high_key, out=sums[1, k:end])
    sums[1, -1] = ((rows[-1] >> 32) * high_key).sum()
    return sums


@lru_cache(maxsize=32)
def _keys(device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(20240717)
    keys = torch.randint(-(2**63), 2**63 - 1, (2, _WORDS), generator=generator, dtype=torch.int64, device="cpu")
    return (keys | 1).to(device)


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
