from __future__ import annotations

import io
import struct
import sys
import zlib

import pytest
from helpers import EXAMPLES
from PIL import Image
from typer.testing import CliRunner

from headwater.cli.app import app
from headwater.cli.serve import serve as command
from headwater.errors import ImageError, InputError, MissingDependencyError, OutputError
from headwater.serve.photo import Photo
from headwater.serve.server import check_access, listen


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def test_a_taken_port_gives_the_next_free_one():
    with listen("127.0.0.1", 0) as first:
        port = first.getsockname()[1]
        with listen("127.0.0.1", port) as second:
            assert second.getsockname()[1] > port


def test_an_address_that_is_not_this_machines():
    with pytest.raises(OutputError, match=r"cannot listen at 192\.0\.2\.1"):
        listen("192.0.2.1", 0)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1", "127.1.2.3"])
def test_this_machines_own_addresses_need_nothing(host):
    check_access(host, False, None)


@pytest.mark.parametrize(
    ("host", "public", "password", "message"),
    [
        ("0.0.0.0", False, "correct horse", "others can reach the page.*--public"),
        ("example.org", False, None, "--public"),
        ("0.0.0.0", True, None, "at least 8 letters.*HEADWATER_PASSWORD"),
        ("127.0.0.1", True, "short", "at least 8 letters"),
    ],
)
def test_other_addresses_need_a_flag_and_a_password(host, public, password, message):
    with pytest.raises(InputError, match=message):
        check_access(host, public, password)


@pytest.mark.parametrize("missing", ["starlette", "uvicorn", "websockets"])
def test_without_the_extra_the_command_says_how_to_install_it(monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith(("headwater.serve.server", "uvicorn", missing))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingDependencyError, match=rf"needs {missing}.*pip install 'headwater\[serve\]'"):
        command(port=0)


def test_a_photo_is_shown_small_and_kept_whole():
    photo = Photo.read(encoded(Image.new("RGB", (3000, 1500), "red"), "jpeg"))
    assert photo.shown.size == (1024, 512) and photo.decoded().size == (3000, 1500)
    assert Image.open(io.BytesIO(photo.jpeg())).size == (1024, 512)
    assert str(photo.path) == "photo"


def test_of_an_animation_the_first_frame_is_taken_and_that_is_known():
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    photo = Photo.read(encoded(frames[0], "gif", save_all=True, append_images=frames[1:]))
    assert photo.animated and photo.shown.getpixel((3, 3)) == (255, 0, 0)
    assert not Photo.read((EXAMPLES / "tabby.jpg").read_bytes()).animated


@pytest.mark.parametrize("kind", ["eps", "ppm", "ico", "jpeg2000", "tga"])
def test_other_formats_are_not_decoded(kind):
    """Pillow gives EPS to another program, if there is one."""
    with pytest.raises(ImageError, match=r"not an image that can be read.*Accepted: JPEG"):
        Photo.read(encoded(Image.new("RGB", (20, 20)), kind))


@pytest.mark.parametrize("kind", ["jpeg", "mpo", "png", "webp", "tiff", "bmp", "gif"])
def test_every_accepted_format_is_read(kind):
    assert Photo.read(encoded(Image.new("RGB", (20, 30)), kind)).shown.size == (20, 30)


@pytest.mark.parametrize("side", [7000, 30_000])
def test_a_photo_of_too_many_pixels_is_not_decoded(side):
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    content = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match=r"40,000,000.*Accepted: JPEG"):
        Photo.read(content)


def test_the_command_offers_the_networks_that_are_named(monkeypatch):
    offered = []
    monkeypatch.setattr("headwater.serve.server.serve", lambda models, *rest: offered.extend(models))
    done = CliRunner().invoke(app, ["serve", "--model", "tiny20", "--port", "0"])
    assert done.exit_code == 0, done.output
    assert [model.card.name for model in offered] == ["tiny20"]
