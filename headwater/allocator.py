"""Memory of tensors that is free stays with the process, so that the next tensor need not ask the system for it."""

from __future__ import annotations

import ctypes
import platform

__all__ = ["keep_freed_memory"]

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's <malloc.h>
_LARGEST_KEPT, _MOST_KEPT = 2**30, 2**31 - 1  # bytes; mallopt takes a C int


def keep_freed_memory() -> bool:
    """Let glibc keep what tensors free, up to 2 GiB, and use it again. Changes the whole process.

    By default glibc maps every block of more than 32 MiB (at first, of 128 KiB) for itself and gives it back when it
    is freed. Each activation of a batch is such a block, so each layer begins with pages that the system has to clear:
    on EfficientNet-Lite0 this takes as long as the network. The commands and the benchmarks call this first; a program
    that explains many images can call it too, once, before its first tensor. Blocks of more than 1 GiB are given back
    as before.

    Returns:
        Whether the C library is glibc and took both settings; elsewhere nothing changes. A process in which the
        variables ``MALLOC_TRIM_THRESHOLD_`` or ``MALLOC_MMAP_THRESHOLD_`` are set is not asked about: these settings
        take their place.

    Example:
        >>> from headwater.allocator import keep_freed_memory
        >>> keep_freed_memory() in (True, False)
        True
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    return bool(mallopt(_MMAP_THRESHOLD, _LARGEST_KEPT)) and bool(mallopt(_TRIM_THRESHOLD, _MOST_KEPT))
