"""What the machine refuses (a full disk, a folder that may not be written) as one sentence instead of a traceback."""

from __future__ import annotations

import errno
import re

_REMEDIES = {
    errno.ENOSPC: "make room there",
    errno.EDQUOT: "make room there",
    errno.EFBIG: "a file may not grow so large there",
    errno.EACCES: "write elsewhere, or ask for the right to write there",
    errno.EPERM: "write elsewhere, or ask for the right to write there",
    errno.EROFS: "nothing can be written there: write elsewhere",
    errno.ENOTDIR: "a part of the path is a file: write elsewhere",
    errno.EISDIR: "it is a folder: name a file in it",
    errno.EEXIST: "it is a file: name a folder",
    errno.ENAMETOOLONG: "the name is too long: write elsewhere",
    errno.EIO: "look at the disk",
    errno.ENOENT: "it is not there any more",
}
# Writers in other languages raise types of their own, which carry the system's words.
_WORDS = re.compile(
    r"no space left on device|file too large|os error \d+|disk quota|read-only file system|permission denied|inline_container|iostream error|unexpected pos",
    re.I,
)
SAVED = "What was done is saved, and the same command goes on from there"


def sentence(error: BaseException) -> str | None:
    """What to tell a person about an error of the machine; None where it is something else."""
    if isinstance(error, OSError) and error.errno in _REMEDIES:
        name = f"{error.filename}: " if error.filename else ""
        return f"{name}{error.strerror}; {_REMEDIES[error.errno]}. {SAVED}"
    if type(error).__name__ in ("SafetensorError", "RuntimeError", "ArrowException") and _WORDS.search(str(error)):
        first = str(error).splitlines()[0]
        return f"a file could not be written ({first[:160]}): make room, or write elsewhere. {SAVED}"
    return None
