"""Members of a tar file in order, read from the archive itself, whoever wrote it.

tarfile takes a damaged header for the end of an archive, and believes what headers say of their own length. Here an
archive must end as the format demands, headers have a limit, and members that are not plain files with a plain name are
marked.
"""

import io
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from accel_train.errors import UserError

BLOCK = 512
MAX_HEADER_BYTES = 2**20
CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class Member:
    """One file of an archive."""

    name: str
    size: int
    fault: str | None
    """Why it can't be used: a link, a device, or a name that leads out of the archive."""
    read: Callable[[], bytes]
    """Its content; to be called before the next member is asked for."""


class BoundedFile(io.FileIO):
    """A file of which nobody reads more at once than a header may be long, unless by `content`."""

    def read(self, size: int | None = -1, /) -> bytes:
        if size is None or not 0 <= size <= MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {size} bytes; at most {MAX_HEADER_BYTES:,} are read")
        return super().read(size) or b""

    def content(self, offset: int, size: int) -> bytes:
        self.seek(offset)
        found = super().read(size) or b""
        if len(found) < size:
            raise tarfile.ReadError(f"cut off: {len(found):,} of {size:,} bytes")
        return found


def members(path: Path) -> Iterator[Member]:
    """Everything but folders. Raises UserError for a damaged archive, with the last member that was whole."""
    last = "before its first member"
    try:
        with BoundedFile(path) as file, tarfile.open(fileobj=file, mode="r:") as archive:
            end = 0
            while (member := archive.next()) is not None:
                if member.size < 0 or member.offset < end:
                    raise tarfile.ReadError(f"{member.name!r} has {member.size} bytes at {member.offset}")
                end = member.offset_data
                if not member.isdir():
                    yield Member(member.name, member.size, _fault(member), _reader(file, member))
                last = f"at or after the member {member.name!r}"
            _check_end(file, archive.offset)
    except Exception as error:  # hostile headers raise many kinds, also OverflowError and RecursionError
        raise UserError(
            f"{path}: damaged {last} ({error}). A shard is an uncompressed tar file; write it again."
        ) from error


def _reader(file: BoundedFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def read() -> bytes:
        try:
            return file.content(member.offset_data, member.size)
        except tarfile.ReadError as error:
            raise UserError(f"{file.name}: the member {member.name!r} is {error}. Write the shard again.") from error

    return read


def _fault(member: tarfile.TarInfo) -> str | None:
    if member.name.startswith("/"):
        return "its name is absolute"
    if ".." in PurePosixPath(member.name).parts:
        return "its name leads out of the archive"
    if member.issym() or member.islnk():
        return f"a link to {member.linkname!r}; links are not followed"
    if not member.isreg() or member.issparse():
        return "not a plain file"
    return None


def _check_end(file: BoundedFile, position: int) -> None:
    """An archive ends with blocks of zeros, and nothing follows them."""
    file.seek(position)
    mark = file.read(BLOCK)
    if len(mark) < BLOCK:
        raise tarfile.ReadError("it ends without the mark for its end, so it may be cut off")
    if any(mark):
        raise tarfile.ReadError("what follows is not the header of a member")
    while chunk := file.read(CHUNK_BYTES):
        if chunk.strip(b"\0"):
            raise tarfile.ReadError("data follows the mark for its end")
