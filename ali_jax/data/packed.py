"""A zip or a tar of images, read without extracting it: images in folders as in a directory.

Nothing is written, so no name in an archive can lead elsewhere. Links and encrypted files are refused; what a
file may take in memory is bounded before it is read.
"""

import lzma
import stat
import tarfile
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TypeVar

from ali_jax.data import folders
from ali_jax.data.archives import check_fits
from ali_jax.data.dataset import DataError, LoadOptions
from ali_jax.data.images import Stored
from ali_jax.data.pictures import Contents

SUFFIXES = (".zip", ".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz")
MAX_BYTES = 2**28  # of one encoded image; a larger one is damaged or malicious
DAMAGE = (  # what damaged bytes raise
    *(tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError),
    NotImplementedError,
)


T = TypeVar("T")


class Member(NamedTuple):
    """A file in an archive."""

    names: folders.Names
    image: Stored


def is_archive(path: Path) -> bool:
    """Whether a file's name says that it is a zip or a tar."""
    return path.name.lower().endswith(SUFFIXES)


def read_archive(path: Path, options: LoadOptions) -> Contents:
    """Read the images of an archive as `folders.read_folder` reads those of a directory.

    A zip or an uncompressed tar is read image by image where it lies. The encoded images of a compressed tar
    are kept in memory.

    Raises:
        DataError: the archive is damaged, has links, or would take more memory than there is.
    """
    return folders.arranged(path, *members(path), options)


def members(path: Path) -> tuple[dict[folders.Names, Stored], Counter[str]]:
    """Return the images of an archive by the names that lead to them, and what is skipped, by reason.

    Raises:
        DataError: as `read_archive`.
    """
    found: dict[folders.Names, Stored] = {}
    skipped: Counter[str] = Counter()
    for member in (_of_zip if path.name.lower().endswith(".zip") else _of_tar)(path):
        if reason := _unusable(member.names):
            skipped[reason] += 1
        else:
            found[member.names] = member.image
    return dict(sorted(found.items())), skipped


def _unusable(names: folders.Names) -> str:
    """Return why a member is no image, or "" if its name says that it is one."""
    if any(name.startswith(".") for name in names):
        return "hidden file"
    return folders.no_image(PurePosixPath(names[-1]).suffix)


def _names(name: str) -> folders.Names:
    """Return the folders that lead to a member and its name, without a "/" ahead of them."""
    return tuple(part for part in PurePosixPath(name).parts if not part.startswith("/"))


def _of_zip(path: Path) -> Iterator[Member]:
    archive = _opened(zipfile.ZipFile, path)  # it stays open: images are read when they are decoded
    for entry in archive.infolist():
        if entry.is_dir():
            continue
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise _link(path, entry.filename)
        names, what = _names(entry.filename), f"{path}/{entry.filename}"
        if not _unusable(names):
            check_size(what, entry.file_size)
            if entry.flag_bits & 1:
                raise DataError(f"{what} is encrypted; make an archive without a password")
        yield Member(names, Stored(what, partial(archive.read, entry)))


def _of_tar(path: Path) -> Iterator[Member]:
    is_plain, kept = _is_uncompressed(path), 0
    with _opened(tarfile.open, path) as archive:
        for entry in _entries(archive, path):
            if entry.issym() or entry.islnk():
                raise _link(path, entry.name)
            if not entry.isfile():
                continue
            names, what, read = _names(entry.name), f"{path}/{entry.name}", bytes
            if not _unusable(names):
                check_size(what, entry.size)
                if is_plain and not entry.issparse():
                    read = partial(_read_at, path, entry.offset_data, entry.size)
                else:
                    kept += entry.size
                    check_fits(path, kept)
                    read = partial(bytes, _content(archive, entry, path))
            yield Member(names, Stored(what, read))


def _entries(archive: tarfile.TarFile, path: Path) -> Iterator[tarfile.TarInfo]:
    """Yield the entries of a tar up to the block of zeros at its end; tarfile would not miss that."""
    file: Any = archive.fileobj
    try:
        yield from archive
        file.seek(archive.offset)
        end = file.read(tarfile.BLOCKSIZE)
    except DAMAGE as error:
        raise _damaged(path) from error
    if end != bytes(tarfile.BLOCKSIZE):
        raise _damaged(path)


def _content(archive: tarfile.TarFile, entry: tarfile.TarInfo, path: Path) -> bytes:
    try:
        file = archive.extractfile(entry)
        return b"" if file is None else file.read()
    except DAMAGE as error:
        raise _damaged(path) from error


def _read_at(path: Path, offset: int, size: int) -> bytes:
    with path.open("rb") as file:
        file.seek(offset)
        return file.read(size)


def _is_uncompressed(path: Path) -> bool:
    try:
        tarfile.open(path, "r:").close()
    except (tarfile.TarError, OSError):
        return False
    return True


def _opened(open_archive: Callable[[Path], T], path: Path) -> T:
    try:
        return open_archive(path)
    except DAMAGE as error:
        raise _damaged(path) from error


def _damaged(path: Path) -> DataError:
    return DataError(f"{path}: not an archive of the kind that its name says, or damaged; make it again")


def _link(path: Path, name: str) -> DataError:
    return DataError(
        f"{path}: {name} is a link, and links in archives are not followed; pack what it leads to, as tar "
        "--dereference does"
    )


def check_size(what: str, size: int) -> None:
    """Raise a DataError for an encoded image of more than `MAX_BYTES`."""
    if size > MAX_BYTES:
        raise DataError(f"{what} has {size} bytes; at most {MAX_BYTES} are read of one image")
