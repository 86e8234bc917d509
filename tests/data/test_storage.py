"""Object storage as folders, on fsspec's storage in memory: the same images and labels as on disk, and clear errors."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
from PIL import Image

import headwater as hw
from headwater.data.classes import found_images
from headwater.data.images import open_image
from headwater.data.labelled import LabelledImage, load_labelled, open_images
from headwater.data.storage import StoragePath, as_path, is_address
from headwater.errors import ImageError, InputError, MissingDependencyError, StorageError
from headwater.explanations import explain_files

fsspec = pytest.importorskip("fsspec")
XML = "<annotation><object><bndbox>{}</bndbox></object></annotation>".format(
    "<xmin>2</xmin><ymin>3</ymin><xmax>9</xmax><ymax>8</ymax>"
)


@pytest.fixture
def stored(tmp_path):
    """A function that copies a folder into storage, and returns its address."""
    memory = fsspec.filesystem("memory")

    def store(folder, address="memory://bucket/data"):
        for path in folder.rglob("*"):
            if path.is_file():
                memory.pipe(f"{address}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return address

    yield store
    memory.store.clear()
    memory.pseudo_dirs.clear()


def noise(path, seed, size=(30, 26)):
    path.parent.mkdir(parents=True, exist_ok=True)
    values = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    Image.fromarray(values).save(path)


@pytest.fixture
def folder(tmp_path):
    for name in ("val/b", "val/a-1", "val/a"):
        for k in range(2):
            noise(tmp_path / "data" / name / f"{k}.png", k)
    (tmp_path / "data" / "val" / "a" / "0.xml").write_text(XML)
    return tmp_path / "data"


def listed(data):
    return [(p.name, p.label, p.boxes, p.open().tobytes()) for p in data.images]


def test_a_folder_of_classes_is_the_same_from_storage(folder, stored):
    disk, storage = load_labelled(folder), load_labelled(stored(folder))
    assert storage.layout == "folders" and storage.classes == disk.classes
    assert listed(storage) == listed(disk)
    assert listed(found_images(as_path("memory://bucket/data"))) == listed(found_images(folder))


def test_lists_and_a_tar_file_are_read_from_storage(shared, stored, tmp_path):
    import tarfile

    source, root = shared / "data" / "tiny20", tmp_path / "tiny20"
    root.mkdir()
    for name in ("classes.csv", "boxes.csv"):
        (root / name).write_bytes((source / name).read_bytes())
    whole = load_labelled(source, "val")
    with tarfile.open(root / "val.tar", "w") as tar:
        for k, image in enumerate(whole.images[:3]):
            (tmp_path / str(k)).write_bytes(image.content())
            tar.add(tmp_path / str(k), image.name)
    disk, storage = load_labelled(root, "val"), load_labelled(stored(root), "val")
    assert listed(storage) == listed(disk)
    assert len({image.digest() for image in storage.images}) == 3


def test_the_fingerprint_of_an_image_is_the_storages_and_changes_with_it(folder, stored):
    image = load_labelled(stored(folder)).images[0]
    before = image.digest()
    assert before == pickle.loads(pickle.dumps(image)).digest(), "without the list, from the storage"
    noise(folder / "val" / "a" / "0.png", 99)
    stored(folder)
    assert load_labelled("memory://bucket/data").images[0].digest() != before
    fsspec.filesystem("memory").rm("memory://bucket/data/val/a/0.png")
    assert pickle.loads(pickle.dumps(image)).digest() == "unreadable"


def test_paths_below_an_address():
    path = as_path("s3://bucket/folder/photo.tar.gz/")
    assert str(path) == "s3://bucket/folder/photo.tar.gz" and path.name == "photo.tar.gz"
    assert (path.stem, path.suffix, path.parent.name) == ("photo.tar", ".gz", "folder")
    assert path.parent.parent == path.parent.parent.parent == StoragePath("s3://bucket"), "a bucket is in nothing"
    assert str(path.with_suffix(".xml").relative_to(as_path("s3://bucket"))) == "folder/photo.tar.xml"
    assert as_path(path) is path and path.absolute() == path and len({path, as_path(str(path))}) == 1
    assert str(as_path("file:///tmp/x")) == "/tmp/x" and as_path("photos/a.jpg").name == "a.jpg"
    assert "s3://bucket" in repr(path) and not is_address(3)


def test_a_password_in_an_address_is_refused():
    with pytest.raises(InputError, match="an address with a password would be written into tables") as raised:
        as_path("sftp://user:secret@host/photos")
    assert "secret" not in str(raised.value)


def test_nothing_above_an_address_is_asked_for(folder, stored, monkeypatch):
    asked = []
    monkeypatch.setattr(
        StoragePath, "is_dir", lambda path, before=StoragePath.is_dir: asked.append(path) or before(path)
    )
    load_labelled(stored(folder / "val"))
    assert asked and all(path.address.startswith("memory://bucket/data") for path in asked)


def test_an_image_by_its_address(folder, stored):
    noise(folder / "photo.png", 1, (64, 64))
    address = stored(folder)
    model = hw.load_model("tiny20")
    (e,) = explain_files([f"{address}/photo.png"], model)
    (disk,) = explain_files([folder / "photo.png"], model)
    assert (e.heatmap == disk.heatmap).all() and e.stem == disk.stem
    assert e.summary()["made_from"]["image"] == f"{address}/photo.png"


@pytest.mark.parametrize("address", ["memory://bucket/data/none.png", "memory://nowhere/at/all.png"])
def test_what_is_not_there(address, folder, stored):
    stored(folder)
    with pytest.raises(ImageError, match=f"{address} does not exist"):
        open_image(address)
    assert not as_path(address).exists()


def test_an_unknown_protocol_and_a_package_that_is_missing(monkeypatch):
    with pytest.raises(StorageError, match="no address that fsspec knows"):
        as_path("nothing://bucket")
    with monkeypatch.context() as patch, pytest.raises(MissingDependencyError, match=r"headwater\[ray\]"):
        patch.setitem(__import__("sys").modules, "fsspec", None)
        as_path("memory://bucket")

    def absent(address):
        raise ImportError("Install s3fs to access S3")

    monkeypatch.setattr(fsspec.core, "url_to_fs", absent)
    with pytest.raises(MissingDependencyError, match=r"Install s3fs .*headwater\[ray\]"):
        as_path("s3://bucket")


class Refusing(type(fsspec.filesystem("memory"))):
    """A storage that raises the same error whatever is asked."""

    cachable = False
    error: Exception = PermissionError("Forbidden")

    def find(self, *_, **__):
        raise self.error

    cat_file = info = _open = find


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (PermissionError("Access Denied"), "denies access to memory://bucket.*Access Denied.*AWS_ACCESS_KEY_ID"),
        (RuntimeError("Unable to locate credentials"), "denies access.*on every machine"),
        (ConnectionError("no route"), r"memory://bucket.* cannot be read \(ConnectionError: no route\)"),
    ],
)
def test_a_storage_that_refuses_is_an_error_of_our_own(monkeypatch, folder, stored, error, message):
    images = load_labelled(stored(folder)).images
    monkeypatch.setattr(Refusing, "error", error)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (Refusing(), address.split("://")[1]))
    for reading in (
        lambda: load_labelled("memory://bucket/data"),
        lambda: images[0].open(),
        lambda: StoragePath("memory://bucket/data/a.png").open("rb"),
        lambda: StoragePath("memory://bucket/data/a.png").version(),
        lambda: open_images(images),
    ):
        with pytest.raises(StorageError, match=message):
            reading()


def test_one_image_that_is_refused_among_others_is_that_image_s_error(monkeypatch, folder, stored):
    images = load_labelled(stored(folder)).images
    opened = LabelledImage.open

    def refuse(self):
        if self.name == "a/1.png":
            raise StorageError("denied")
        return opened(self)

    monkeypatch.setattr(LabelledImage, "open", refuse)
    found = open_images(images)
    assert [isinstance(one, StorageError) for one in found] == [p.name == "a/1.png" for p in images]
    only = [image for image in images if image.name == "a/1.png"]
    assert isinstance(open_images(only)[0], StorageError), "one alone says nothing of others"
