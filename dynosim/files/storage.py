"""What may befall a disk while a program runs that was able to write to it when it started."""

import errno

FAULTS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS})
"""Full, over quota, at a file's limit, broken, read-only: these may pass, wrong paths do not."""


def is_fault(error: OSError) -> bool:
    """Whether writing is worth another try later."""
    return error.errno in FAULTS
