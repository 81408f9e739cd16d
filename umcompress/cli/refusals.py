"""What a file system refuses, and what a user can do about it."""

from __future__ import annotations

import errno

# What a file system says, and what to do about it. Any other OSError is an error of ours.
_ROOM, _RIGHTS = "make room", "see that it can be read and written"
_KIND = "remove what has its name and is a folder for a file, or a file for a folder,"
REFUSALS = {
    errno.ENOSPC: _ROOM, errno.EDQUOT: _ROOM, errno.EFBIG: "write where files may be larger", errno.EACCES: _RIGHTS,
    errno.EPERM: _RIGHTS, errno.EROFS: _RIGHTS, errno.EIO: "look after the disk", errno.ESTALE: "look after the disk",
    errno.ENAMETOOLONG: "give it a shorter name", errno.ELOOP: "see where its links lead",
    errno.ENOTDIR: _KIND, errno.EISDIR: _KIND, errno.EEXIST: _KIND,
}  # fmt: skip
