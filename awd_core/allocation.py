"""Memory of large arrays goes back to the system when they are freed."""

import ctypes
import sys
from functools import cache

MAPPED_FROM = 1 << 20
_M_MMAP_THRESHOLD = -3


@cache
def map_large_blocks() -> None:
    """Give blocks of 1 MiB and more a mapping of their own, for good. glibc only.

    Left alone, glibc takes such blocks from its heap once one of them was freed. A small array that
    outlives a piece, such as its sums, then lies beside the room that the piece leaves, the next
    piece no longer fits there, and a sweep takes the memory of a whole tensor: for SCE of eight
    experts 2.5 GB instead of 0.5. A sum of stored numbers makes no such pieces and is faster
    without: so this is asked for where pieces in float64 are made.
    """
    if sys.platform == "linux":
        set_option = getattr(ctypes.CDLL(None), "mallopt", None)
        if set_option is not None:
            set_option(_M_MMAP_THRESHOLD, MAPPED_FROM)
