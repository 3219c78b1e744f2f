"""What a user did or gave that cannot work, said in one sentence. Everything else that is raised is a bug of ours."""

import errno

FULL = ("No space left on device", "disk is full", "Read-only file system", "Disk quota exceeded")


class UserError(Exception):
    """One clear sentence: what was found, and what to do about it. Ends a run with a non-zero exit and no traceback."""


class Diverged(UserError):
    """The loss became NaN or infinite. The run ends in state "diverged", which is a result, not a crash."""


class Busy(UserError):
    """Another process is at the same run."""


def cannot_write(error: BaseException | None) -> bool:
    """Whether this error, or one that it came from, is a disk that is full or cannot be written to."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EACCES):
            return True
        if any(words.lower() in str(error).lower() for words in FULL):
            return True
        error = error.__cause__ or error.__context__
    return False
