"""Images in object storage: any address that fsspec knows, such as ``s3://bucket/folder``, read like a folder."""

from __future__ import annotations

import functools
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from datetime import datetime
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any, cast

from headwater.errors import ImageError, InputError, MissingDependencyError, StorageError

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_VERSIONS = ("ETag", "etag", "md5Hash", "content_md5", "LastModified", "last_modified", "mtime", "updated", "created")
"""What storages call that which changes with an object's content; the first that there is counts."""


def is_address(text: object) -> bool:
    """Whether a text is an address of object storage, not a path.

    >>> is_address("s3://bucket/photos"), is_address("photos/cat.jpg")
    (True, False)
    """
    return isinstance(text, str) and _ADDRESS.match(text) is not None


def as_path(place: str | Path | StoragePath) -> Path:
    """The path, or a :class:`StoragePath` where ``place`` is an address.

    A :class:`StoragePath` has the part of :class:`~pathlib.Path` that reading needs, so code that reads folders takes
    both.

    Raises:
        StorageError: fsspec does not know the address's protocol.
        MissingDependencyError: fsspec, or the package that the protocol needs, is not installed.
    """
    if isinstance(place, StoragePath):
        return cast(Path, place)
    if not is_address(place):
        return Path(place)
    text = str(place)
    if text.startswith("file://"):
        return Path(text.removeprefix("file://"))
    user, at, _ = text.split("://", 1)[1].partition("/")[0].rpartition("@")
    if at and ":" in user:
        raise InputError(
            f"an address with a password would be written into tables ({text.split('://', 1)[0]}://...@...); "
            "give credentials in the environment or in fsspec's configuration"
        )
    root = StoragePath(text)
    _at(root.address)  # an unknown protocol is an error here, not at the first image
    root._listing = _Listing(root.address)
    return cast(Path, root)


class StoragePath:
    """A folder or file in object storage, for reading.

    The root that :func:`as_path` returns is listed once, when it is first asked what it holds, and everything below it
    is answered from that list. Credentials and endpoints are those of fsspec and the storage's own library, from the
    environment of each process; they do not travel with a pickled path.

    Attributes:
        address: such as ``s3://bucket/folder/photo.jpg``, without a slash at the end.
    """

    def __init__(self, address: str, listing: _Listing | None = None) -> None:
        head, tail = address.split("://", 1)
        self.address = f"{head}://{tail.strip('/') if head != 'http' and head != 'https' else tail.rstrip('/')}"
        self._listing = listing

    def __getstate__(self) -> str:
        return self.address

    def __setstate__(self, address: str) -> None:
        self.address, self._listing = address, None

    def __str__(self) -> str:
        return self.address

    def __repr__(self) -> str:
        return f"StoragePath({self.address!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoragePath) and self.address == other.address

    def __hash__(self) -> int:
        return hash(self.address)

    def __lt__(self, other: StoragePath) -> bool:
        return self.address.split("/") < other.address.split("/")  # as paths are ordered: part by part

    def __truediv__(self, name: str | PurePosixPath) -> StoragePath:
        return StoragePath(f"{self.address}/{name}", self._listing)

    @property
    def parts(self) -> tuple[str, ...]:
        return tuple(self.address.split("://", 1)[1].split("/"))

    @property
    def name(self) -> str:
        return self.parts[-1]

    @property
    def stem(self) -> str:
        return PurePosixPath(self.name).stem

    @property
    def suffix(self) -> str:
        return PurePosixPath(self.name).suffix

    @property
    def parent(self) -> StoragePath:
        if len(self.parts) == 1:  # a bucket has none
            return self
        listed = self._listing if self._listing is not None and self.address != self._listing.root else None
        return StoragePath(self.address.rsplit("/", 1)[0], listed)

    @property
    def is_listed(self) -> bool:
        """Whether this is the root that is listed, above which nothing is known."""
        return self._listing is not None and self.address == self._listing.root

    def absolute(self) -> StoragePath:
        return self

    def with_suffix(self, suffix: str) -> StoragePath:
        return StoragePath(f"{self.parent.address}/{self.stem}{suffix}", self._listing)

    def relative_to(self, root: StoragePath) -> PurePosixPath:
        return PurePosixPath(self.address.removeprefix(f"{root.address}/"))

    def exists(self) -> bool:
        return self.is_file() or self.is_dir()

    def is_file(self) -> bool:
        """Raises: StorageError: the storage does not say."""
        listing, below = self._listed()
        return below in listing.files

    def is_dir(self) -> bool:
        """Raises: StorageError: the storage does not say."""
        listing, below = self._listed()
        return below in listing.folders

    def iterdir(self) -> Iterator[StoragePath]:
        """What is in the folder. Raises: StorageError: it cannot be listed."""
        listing, below = self._listed()
        for name in listing.folders.get(below, ()):
            yield StoragePath(f"{self.address}/{name}", listing)

    def glob(self, pattern: str) -> Iterator[StoragePath]:
        return (path for path in self.iterdir() if fnmatchcase(path.name, pattern))

    def rglob(self, pattern: str) -> Iterator[StoragePath]:
        """The files below the folder whose names fit."""
        for path in self.iterdir():
            if path.is_dir():
                yield from path.rglob(pattern)
            elif fnmatchcase(path.name, pattern):
                yield path

    def open(self, mode: str = "r", **options: Any) -> Any:
        """A file object; text is read as a whole, bytes as they are asked for.

        Raises:
            ImageError: there is no such object.
            StorageError: it cannot be read.
        """
        if "b" not in mode:
            return io.TextIOWrapper(io.BytesIO(self.read_bytes()), **options)
        fs, path = _at(self.address)
        with _Translated(self.address):
            return fs.open(path, "rb")

    def read_text(self, encoding: str = "utf-8") -> str:
        return self.read_bytes().decode(encoding)

    def read_bytes(self, span: tuple[int, int] | None = None) -> bytes:
        """The object's bytes, or those of a span: where it begins, and its length.

        Raises:
            ImageError: there is no such object.
            StorageError: it cannot be read.
        """
        fs, path = _at(self.address)
        with _Translated(self.address):
            if span is None:
                return cast(bytes, fs.cat_file(path))
            return cast(bytes, fs.cat_file(path, start=span[0], end=sum(span)))

    def version(self) -> str:
        """A hash of what the storage itself says of the object's content (ETag or checksum, else time; size).

        Raises:
            ImageError: there is no such object.
            StorageError: the storage does not say.
        """
        if self._listing is not None:
            listing, below = self._listed()
            if below in listing.files:
                return listing.files[below]
        fs, path = _at(self.address)
        with _Translated(self.address):
            return _version(fs.info(path))

    def _listed(self) -> tuple[_Listing, str]:
        """The list that has this path, and the path in it."""
        if self._listing is None:
            self._listing = _Listing(self.address)
        return self._listing, self.address[len(self._listing.root) + 1 :]


class _Listing:
    """All objects below an address."""

    def __init__(self, root: str) -> None:
        self.root = root

    @functools.cached_property
    def files(self) -> Mapping[str, str]:
        """Path below the root, and version, of each object."""
        fs, path = _at(self.root)
        files = {}
        with _Translated(self.root):
            try:
                found = fs.find(path, detail=True, refresh=True)
            except TypeError:  # of a storage without a cache of lists
                found = fs.find(path, detail=True)
        for name, about in found.items():
            below = name[len(path) :].lstrip("/")
            if about.get("type") != "directory" and not below.endswith("/"):
                files[below] = _version(about)
        return files

    @functools.cached_property
    def folders(self) -> Mapping[str, tuple[str, ...]]:
        """Path below the root of each folder, and the names in it, in order."""
        names: dict[str, dict[str, None]] = {}
        for file in self.files:
            while file:
                folder, _, name = file.rpartition("/")
                known = folder in names
                names.setdefault(folder, {})[name] = None
                if known:
                    break
                file = folder
        return {folder: tuple(sorted(inside)) for folder, inside in names.items()}


def _version(about: Mapping[str, Any]) -> str:
    told = next((about[key] for key in _VERSIONS if about.get(key)), "")
    if isinstance(told, datetime):  # of one object; lists may have the number
        told = told.timestamp()
    return hashlib.sha256(f"{told} {about.get('size')}".encode()).hexdigest()[:16]


def _at(address: str) -> tuple[Any, str]:
    """The file system of fsspec that an address is in, and its path there."""
    try:
        import fsspec
    except ImportError as error:
        raise MissingDependencyError(f"{address} needs fsspec: pip install 'headwater[ray]'") from error
    try:
        fs, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        raise MissingDependencyError(
            f"{address} needs a package of its storage ({error}); for s3:// pip install 'headwater[ray]'"
        ) from error
    except ValueError as error:
        raise StorageError(f"{address} is no address that fsspec knows ({error}); s3://bucket/folder is one") from error
    return fs, str(path)


class _Translated:
    """Turn what storage libraries raise into errors of our own."""

    def __init__(self, address: str) -> None:
        self.address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> None:
        if not isinstance(error, Exception):
            return
        said = f"{type(error).__name__}: {error}".splitlines()[0]
        if isinstance(error, FileNotFoundError):
            raise ImageError(f"{self.address} does not exist") from error
        if isinstance(error, PermissionError) or "credentials" in said.lower():
            raise StorageError(
                f"the storage denies access to {self.address} ({said}); give this process credentials that may list "
                "and read it, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, on every machine of a cluster"
            ) from error
        raise StorageError(f"{self.address} cannot be read ({said}); check the address and the connection") from error
