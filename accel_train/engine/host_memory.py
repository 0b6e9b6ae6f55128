"""Memory of the process that was freed stays with the process, so that the next step finds it mapped."""

import ctypes
import platform

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
LARGEST = 2**31 - 1
"""mallopt takes a C int: blocks up to 2 GiB."""


def keep_freed_memory() -> bool:
    """Tells glibc's malloc to give nothing back to the system until the process ends (man 3 mallopt).

    A step on the CPU frees all its activations at its end. By default glibc unmaps blocks of 32 MiB and more as well as
    what lies free at the top of the heap, and the kernel clears every page of them anew in the next step: 5 % of a step of
    a small ViT. Returns False where the C library is another one, and nothing is changed.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Either one alone would freeze the other at its first value, 128 KiB.
    return bool(mallopt(M_MMAP_THRESHOLD, LARGEST)) and bool(mallopt(M_TRIM_THRESHOLD, LARGEST))
