"""NIfTI files: relevance of a volume in the space of the volume, for viewers such as ITK-SNAP, FSLeyes or 3D Slicer."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from headwater.errors import ImageError, InputError, MissingDependencyError
from headwater.files import is_file, write_bytes
from headwater.pictures.layout import numbers

_MOST_VOXELS = 2**29
"""Larger files are refused before they are decompressed: 512 x 512 x 2048."""


def save_nifti(path: str | Path, heatmap: npt.ArrayLike, affine: npt.ArrayLike | None = None) -> Path:
    """Write relevance as a compressed NIfTI file; the same relevance makes the same file, byte for byte.

    Args:
        path: ends in ``.nii.gz``; its folder is created if need be.
        heatmap: relevance of each voxel, ``(D, H, W)``, with its axes in the order of the volume's own file.
        affine: ``(4, 4)`` from voxel to position, in mm, of the volume that was explained, see :func:`read_nifti`;
            the identity if not given.

    Returns:
        The path.

    Raises:
        InputError: another ending, another shape, values that are not finite.
        MissingDependencyError: nibabel is not installed.
        OutputError: the file cannot be written; one that stood there before is unchanged.
    """
    path = Path(path)
    if not path.name.lower().endswith(".nii.gz"):
        raise InputError(f"a NIfTI file of relevance must be called NAME.nii.gz, got {path.name!r}")
    values = numbers(heatmap, "D, H, W", "the heatmap")
    matrix = np.eye(4) if affine is None else numbers(affine, "4, 4", "the affine").astype(np.float64)
    if matrix.shape != (4, 4) or not np.array_equal(matrix[3], (0, 0, 0, 1)):
        raise InputError(f"the affine must be (4, 4) with the last row 0, 0, 0, 1, got {matrix.tolist()}")
    image = _nibabel().Nifti1Image(values, matrix)
    image.header.set_xyzt_units("mm")
    image.header["descrip"] = b"relevance (headwater)"
    return write_bytes(path, gzip.compress(image.to_bytes(), compresslevel=6, mtime=0))


def read_nifti(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """Read a volume and its affine.

    Args:
        path: of a ``.nii`` or ``.nii.gz`` file.

    Returns:
        The values in the type of the file (float64 where the file scales them), in the order of the file's axes; and
        the affine, ``(4, 4)`` float64, from voxel to position.

    Raises:
        ImageError: the file is missing, is no NIfTI file, is cut off or damaged, has more than 2^29 values, or holds no
            real numbers.
        MissingDependencyError: nibabel is not installed.
    """
    nibabel, path = _nibabel(), Path(path)
    if not is_file(path):
        raise ImageError(f"{path} is not there, or is no file")
    try:
        image = nibabel.load(path, mmap=False)
        if not isinstance(image, nibabel.Nifti1Image):  # NIfTI-2 is a kind of it
            raise ImageError(f"{path} is no NIfTI file, but {type(image).__name__}")
        count = int(np.prod(image.shape, dtype=np.float64))
        if count > _MOST_VOXELS:
            raise ImageError(f"{path} says that it has {count} values; at most {_MOST_VOXELS} are read")
        if path.name.lower().endswith(".gz"):
            image = _checked(path, image, 8 * count + image.dataobj.offset)
        values = np.asarray(image.dataobj)
    except (nibabel.filebasedimages.ImageFileError, nibabel.spatialimages.HeaderDataError) as error:
        raise ImageError(f"{path} is no NIfTI file: {error}") from error
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise ImageError(f"{path} cannot be read: {error}") from error
    if values.dtype.kind not in "fiu":
        raise ImageError(f"{path} holds {values.dtype}, not one real number a voxel")
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native, np.asarray(image.affine, dtype=np.float64)


def _checked(path: Path, image: Any, most: int) -> Any:
    """A compressed file read up to its end, where its checksum stands, which nibabel does not reach by itself.

    Args:
        path: of the file.
        image: as nibabel opened it.
        most: bytes read, so that little that is compressed cannot fill the memory.
    """
    with gzip.open(path) as stream:
        content = stream.read(most + 1)
    return type(image).from_bytes(content)


def _nibabel() -> ModuleType:
    """The library that reads and writes NIfTI."""
    try:
        import nibabel
    except ImportError as error:
        raise MissingDependencyError("NIfTI files need nibabel: pip install 'headwater[volumes]'") from error
    return nibabel
