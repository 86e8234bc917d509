from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest

from headwater.errors import ImageError, InputError, MissingDependencyError, OutputError
from headwater.pictures import read_nifti, save_nifti

AFFINE = np.array([[-0.7, 0.1, 0, 90], [0, 0.7, 0, -126], [0, 0, 2.5, -72], [0, 0, 0, 1]])


@pytest.fixture
def nibabel():
    return pytest.importorskip("nibabel")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_relevance_and_affine_come_back_exactly(dtype, tmp_path: Path, nibabel) -> None:
    heatmap = np.random.default_rng(0).normal(size=(5, 6, 7)).astype(dtype)
    path = save_nifti(tmp_path / "new" / "map.nii.gz", heatmap, AFFINE)
    values, affine = read_nifti(path)
    assert values.dtype == dtype
    np.testing.assert_array_equal(values, heatmap)
    np.testing.assert_allclose(affine, AFFINE, rtol=2**-23)  # NIfTI-1 keeps it in float32
    assert [file.name for file in path.parent.iterdir()] == ["map.nii.gz"]
    assert nibabel.load(path).header.get_xyzt_units()[0] == "mm"


def test_a_map_has_the_affine_of_the_volume_it_explains(tmp_path: Path, nibabel) -> None:
    original = tmp_path / "scan.nii"
    nibabel.save(nibabel.Nifti1Image(np.ones((4, 4, 3), np.int16), AFFINE), original)
    volume, affine = read_nifti(original)
    assert volume.dtype == np.int16
    saved = save_nifti(tmp_path / "map.nii.gz", np.zeros(volume.shape), affine)
    np.testing.assert_array_equal(nibabel.load(saved).affine, nibabel.load(original).affine)


def test_without_an_affine_it_is_the_identity(tmp_path: Path, nibabel) -> None:
    np.testing.assert_array_equal(read_nifti(save_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2))))[1], np.eye(4))


def test_the_same_relevance_makes_the_same_file(tmp_path: Path, nibabel) -> None:
    files = [save_nifti(tmp_path / name, np.ones((3, 3, 3)), AFFINE) for name in ("a.nii.gz", "b.nii.gz")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_values_are_in_the_byte_order_of_this_machine(tmp_path: Path, nibabel) -> None:
    header = nibabel.Nifti1Header(endianness=">")
    header.set_data_dtype(np.float32)
    nibabel.save(nibabel.Nifti1Image(np.ones((2, 2, 2), np.float32), AFFINE, header), tmp_path / "big.nii.gz")
    values, _ = read_nifti(tmp_path / "big.nii.gz")
    assert values.dtype.isnative
    assert values.sum() == 8


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, nibabel, monkeypatch) -> None:
    path = save_nifti(tmp_path / "a.nii.gz", np.ones((2, 2, 2)))

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OutputError, match="No space left"):
        save_nifti(path, np.zeros((2, 2, 2)))
    assert read_nifti(path)[0].sum() == 8
    assert [file.name for file in tmp_path.iterdir()] == ["a.nii.gz"]


def test_files_that_cannot_be_read_say_so(tmp_path: Path, nibabel) -> None:
    with pytest.raises(ImageError, match="is not there"):
        read_nifti(tmp_path / "none.nii.gz")
    with pytest.raises(ImageError, match="is not there, or is no file"):
        read_nifti(tmp_path)
    for name, content in (("text.nii", b"hello"), ("text.nii.gz", b"hello"), ("empty.nii.gz", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ImageError, match=name):
            read_nifti(tmp_path / name)
    whole = save_nifti(tmp_path / "whole.nii.gz", np.random.default_rng(0).random((20, 20, 20))).read_bytes()
    for length in (10, 200, 400, len(whole) // 2, len(whole) - 4):
        (tmp_path / "cut.nii.gz").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"cut\.nii\.gz"):
            read_nifti(tmp_path / "cut.nii.gz")
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    (tmp_path / "flipped.nii.gz").write_bytes(flipped)
    with pytest.raises(ImageError, match=r"flipped\.nii\.gz cannot be read"):
        read_nifti(tmp_path / "flipped.nii.gz")


def test_huge_files_are_refused_before_they_are_decompressed(tmp_path: Path, nibabel) -> None:
    header = nibabel.Nifti1Header()
    header.set_data_shape((30000, 30000, 30000))
    header["vox_offset"] = 352
    (tmp_path / "huge.nii.gz").write_bytes(gzip.compress(header.binaryblock + bytes(1000)))
    with pytest.raises(ImageError, match="27000000000000 values"):
        read_nifti(tmp_path / "huge.nii.gz")


def test_colours_are_no_relevance(tmp_path: Path, nibabel) -> None:
    colours = np.zeros((2, 2, 2), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    nibabel.save(nibabel.Nifti1Image(colours, AFFINE), tmp_path / "rgb.nii.gz")
    with pytest.raises(ImageError, match="not one real number a voxel"):
        read_nifti(tmp_path / "rgb.nii.gz")


@pytest.mark.parametrize(
    ("name", "heatmap", "affine", "told"),
    [
        ("a.npy", np.zeros((2, 2, 2)), None, r"must be called NAME\.nii\.gz, got 'a\.npy'"),
        ("a.nii.gz", np.zeros((2, 2)), None, r"the heatmap must have the shape \(D, H, W\)"),
        ("a.nii.gz", np.full((2, 2, 2), np.nan), None, "8 values that are NaN"),
        ("a.nii.gz", np.zeros((2, 2, 2)), np.eye(3), r"the affine must be \(4, 4\)"),
        ("a.nii.gz", np.zeros((2, 2, 2)), np.ones((4, 4)), "the last row 0, 0, 0, 1"),
    ],
)
def test_what_does_not_fit_is_said(name, heatmap, affine, told, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=told):
        save_nifti(tmp_path / name, heatmap, affine)
    assert not list(tmp_path.iterdir())


def test_without_nibabel_the_extra_is_named(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "nibabel", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'headwater\[volumes\]'"):
        save_nifti(tmp_path / "a.nii.gz", np.zeros((2, 2, 2)))
    with pytest.raises(MissingDependencyError, match=r"pip install 'headwater\[volumes\]'"):
        read_nifti(tmp_path / "a.nii.gz")
