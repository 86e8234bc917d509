"""The page's connection, over HTTP as a browser has it."""

from __future__ import annotations

import asyncio
import gc
import http.client
import io
import json
import time
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import numpy as np
import pytest
import torch
from helpers import EXAMPLES
from PIL import Image
from websockets.exceptions import ConnectionClosed, InvalidStatus

import headwater as hw
from headwater.data.preprocessing import seen
from headwater.metrics.insertion_deletion import pixel_ranks
from headwater.models import network_input
from headwater.serve.access import COOKIE
from headwater.serve.app import MOST_VISITORS
from headwater.serve.networks import Network, by_name
from headwater.serve.photo import MAX_BYTES, Photo
from headwater.serve.server import listen, serve

from .client import Client, served, visiting

TABBY = EXAMPLES / "tabby.jpg"


@pytest.fixture(scope="module")
def networks() -> dict[str, Network]:
    return by_name([hw.load_model("tiny20")])


@pytest.fixture(scope="module")
def address(networks) -> Iterator[str]:
    with served(networks) as found:
        yield found


@pytest.fixture
def client(address) -> Iterator[Client]:
    with visiting(address) as found:
        yield found


def get(address: str, path: str, method: str = "GET", body: str = "", **headers: str) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection(address, timeout=60)
    connection.request(method, path, body, headers)
    return connection.getresponse()


def test_a_photo_gets_the_map_that_explain_makes(client):
    assert client.hello["networks"][0]["name"] == "tiny20" and "headwater" in client.hello["methods"]
    photo = client.upload(TABBY.read_bytes())
    assert (photo["width"], photo["height"], photo["animated"]) == (451, 300, False)
    (answer,) = client.explain("headwater")
    expected = hw.explain(TABBY, model="tiny20")
    assert np.array_equal(answer["arrays"]["map"], expected.heatmap[0].numpy())
    assert answer["target"]["name"] == answer["predicted"][0]["name"] == "tabby"
    assert answer["conservation"]["seed"] == expected.probability.item() and answer["additive"]
    assert [join["module"] for join in answer["flow"]] == [join.module for join in expected.flow.joins]
    assert answer["stem"] == "photo.tiny20.headwater.tabby"


def test_another_class_and_several_methods(client):
    client.ask("example", name="espresso.jpg")
    assert client.until("photo")["name"] == "espresso.jpg"
    first, second = client.explain("headwater", "random", target="lion")
    assert first["target"]["name"] == second["target"]["name"] == "lion"
    assert first["conservation"] is not None and second["conservation"] is None
    assert not np.array_equal(first["arrays"]["values"], second["arrays"]["values"])


def test_why_one_class_and_not_another(client):
    client.upload(TABBY.read_bytes())
    done, failed = client.explain("headwater", "gradcam", target="tabby", against="lion")
    expected = hw.explain(TABBY, model="tiny20", method="headwater", target="tabby", against="lion")
    assert np.array_equal(done["arrays"]["map"], expected.heatmap[0].numpy())
    assert done["explained"] == "tabby, not lion" and done["against"]["name"] == "lion"
    assert "gradcam: it explains one class" in failed["message"]


def test_every_scale_can_be_drawn(client):
    client.upload(TABBY.read_bytes())
    (answer,) = client.explain("headwater")
    expected = hw.explain(TABBY, model="tiny20").scales
    assert [scale["name"] for scale in answer["scales"]] == list(expected)
    for number, (name, maps) in enumerate(expected.items()):
        client.ask("paint", scale=number)
        drawn = client.until("paint")
        assert drawn["scale"] == number
        assert np.array_equal(drawn["arrays"]["values"], maps[0].float().numpy()), name


def test_a_method_that_fails_leaves_the_others(client):
    client.upload(TABBY.read_bytes())
    failed, done = client.explain("abn", "headwater")
    assert failed["kind"] == "error" and failed["message"].startswith("abn: ")
    assert done["kind"] == "map"


def test_maps_are_drawn_anew(client):
    client.upload(TABBY.read_bytes())
    (answer,) = client.explain("headwater")
    assert len(np.unique(answer["arrays"]["colours"].reshape(-1, 4), axis=0)) > 8
    client.ask("paint", levels=4, colormap="jet")
    colours = client.until("paint")["arrays"]["colours"]
    assert colours.shape == (64, 64, 4) and len(np.unique(colours.reshape(-1, 4), axis=0)) <= 4
    assert client.read()["kind"] == "painted"


def test_files_are_those_of_save(client):
    client.upload(TABBY.read_bytes())
    client.explain("headwater")
    expected = hw.explain(TABBY, model="tiny20", quantize=8)
    for what, image in (("overlay", expected.overlay()), ("figure", None)):
        client.ask("file", method="headwater", what=what, levels=8)
        answer = client.until("file")
        assert answer["name"] == f"photo.tiny20.headwater-hq8.tabby.{what}.png".replace("-hq8", "+hq8")
        drawn = Image.open(io.BytesIO(answer["arrays"]["content"].tobytes()))
        assert image is None or np.array_equal(np.asarray(drawn), np.asarray(image))


def test_the_figure_of_all_maps_has_a_caption(client):
    client.upload(TABBY.read_bytes())
    client.explain("headwater", "random")
    client.ask("file", what="grid")
    answer = client.until("file")
    assert answer["name"] == "photo.tabby.maps.pdf" and answer["arrays"]["content"].tobytes().startswith(b"%PDF")
    assert "photo: tabby, 81.2%" in answer["caption"] and "headwater, random" in answer["caption"]


def test_curves_are_those_of_insertion_deletion(client, networks):
    client.upload(TABBY.read_bytes())
    (answer,) = client.explain("headwater")
    client.ask("curves")
    curves = client.until("curves")
    network, heatmap = networks["tiny20"], torch.from_numpy(answer["arrays"]["values"].copy())[None]
    x = network_input(network.model, [hw.explain(TABBY, model=network.model).image])
    prepare = network.card.preprocessing
    for protocol in ("published", "budget"):
        expected = hw.insertion_deletion(
            *(network.model, x, heatmap, answer["target"]["index"], protocol, 41), mean=prepare.mean, std=prepare.std
        )
        assert curves["areas"][protocol]["insertion"] == expected.insertion.item()
        arrays = {name: curves["arrays"][f"{protocol}.{name}"] for name in ("ranks", "deletion", "fraction")}
        assert np.array_equal(arrays["deletion"], expected.deletion_curve[0].numpy())
        assert np.array_equal(arrays["ranks"], pixel_ranks(heatmap, protocol)[0].numpy())
        assert np.array_equal(arrays["fraction"], expected.fraction[0].numpy())
    assert np.array_equal(curves["arrays"]["input"], np.asarray(seen(x[0], prepare)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no image", "not an image"),
        (b"", "0 bytes"),
        (TABBY.read_bytes()[:9000], "cannot be read"),
        (bytes(MAX_BYTES + 1), "20.0 MB"),
    ],
)
def test_what_cannot_be_read_is_said_and_the_page_goes_on(client, content, message):
    client.upload(TABBY.read_bytes())
    answer = client.upload(content)
    assert answer["kind"] == "error" and message in answer["message"] and "40 megapixels" in answer["message"]
    assert client.explain("headwater")[0]["target"]["name"] == "tabby"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ("{", "must be JSON"),
        ('["explain"]', "says what to do"),
        ('{"do": "dance"}', "nothing called 'dance'"),
        ('{"do": "example", "name": "../../pyproject.toml"}', "no example"),
        ('{"do": "explain", "network": "tiny20", "methods": ["headwater"]}', "no photo yet"),
        ('{"do": "curves"}', "no photo yet"),
        ('{"do": "file", "method": "headwater", "what": "figure"}', "no map"),
        ('{"do": "paint", "levels": 1000000}', "levels must be"),
        ('{"do": "paint", "opacity": 7}', "opacity must be"),
        ('{"do": "paint", "opacity": ' + 400 * "9" + "}", "opacity must be"),
        ('{"do": "file", "method": ["headwater"], "what": "figure"}', "no map"),
        ('{"do": "\\ud800"}', "nothing called"),
        ('{"do": "cancel", "why": "' + 5000 * "x" + '"}', "at most 4,000 letters"),
    ],
)
def test_requests_that_do_not_fit_are_answered(client, request_, message):
    client.connection.send(request_)
    assert message in client.until("error")["message"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"methods": []}, "one to 4 methods"),
        ({"methods": ["a", "b", "c", "d", "e"]}, "one to 4 methods"),
        ({"methods": ["otsuki"]}, "did you mean"),
        ({"network": "resnet50"}, "no network"),
        ({"target": "tabbi"}, "did you mean tabby"),
        ({"target": 20}, "0 to 19"),
        ({"target": [3]}, "a number or a name"),
        ({"target": 5, "against": "tabby"}, "against"),
    ],
)
def test_explanations_that_cannot_be_made(client, options, message):
    client.upload(TABBY.read_bytes())
    client.ask("explain", **{"network": "tiny20", "methods": ["headwater"], **options})
    assert message in client.until("error")["message"]


def test_visitors_at_once_get_their_own_image(address, networks):
    def photo(shade: int) -> bytes:
        stream = io.BytesIO()
        Image.new("RGB", (80 + shade, 90), (shade, 255 - shade, 40)).save(stream, "png")
        return stream.getvalue()

    def visit(shade: int) -> list[np.ndarray]:
        with visiting(address) as client:
            maps = []
            for _ in range(2):
                assert client.upload(photo(shade))["width"] == 80 + shade
                (answer,) = client.explain("headwater")
                maps.append(answer["arrays"]["map"])
            return maps

    shades = range(0, 240, 40)
    with ThreadPoolExecutor(6) as visitors:
        seen_by = list(visitors.map(visit, shades))
    model = networks["tiny20"].model
    explain = hw.load_method("headwater", model)
    for shade, maps in zip(shades, seen_by, strict=True):
        image = Image.open(io.BytesIO(photo(shade)))
        expected = explain(network_input(model, [image])).heatmap[0].numpy()
        assert all(np.array_equal(values, expected) for values in maps)


def test_a_second_visitor_sees_its_place_until_the_first_cancels(address):
    with visiting(address) as first, visiting(address) as second:
        for client in (first, second):
            client.upload(TABBY.read_bytes())
        first.ask("explain", network="tiny20", methods=["rise"])
        while first.until("state")["done"] == 0:
            pass
        second.ask("explain", network="tiny20", methods=["headwater"])
        state = second.until("state")
        assert state["place"] == 1
        first.ask("cancel")
        assert first.until("cancelled")
        assert second.until("map")["method"] == "headwater"


def test_a_new_wish_ends_the_one_before(client):
    client.upload(TABBY.read_bytes())
    before = client.ask("explain", network="tiny20", methods=["rise"])
    assert client.until("state")["id"] == before
    (answer,) = client.explain("headwater")
    assert answer["method"] == "headwater"


def test_nothing_of_a_visitor_is_left(networks):
    with served(networks) as address:
        with visiting(address) as client:
            client.upload(TABBY.read_bytes())
            client.explain("headwater")
            kept = [weakref.ref(found) for found in gc.get_objects() if type(found) in (Photo, hw.ImageExplanation)]
            assert {Photo, hw.ImageExplanation} <= {type(found()) for found in kept}
            client.ask("explain", network="tiny20", methods=["rise"])
            client.until("state")
        deadline = time.monotonic() + 120
        while left := [type(found()) for found in kept if found() is not None]:
            assert time.monotonic() < deadline, f"the page is closed, but {left} are still in memory"
            time.sleep(0.2)
            gc.collect()


def test_another_website_is_refused(address):
    with pytest.raises(InvalidStatus, match="403"), visiting(address, Origin="http://elsewhere.example"):
        pass
    with visiting(address, Origin=f"http://{address}") as client:
        assert client.hello["kind"] == "hello"


def test_the_page_loads_nothing_from_elsewhere(address):
    for path in ("/", "/login", "/static/page.css", "/static/page.js", "/examples/tabby.jpg"):
        answer = get(address, path)
        text = answer.read()
        assert answer.status == 200, path
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert b"//" not in text.replace(b"http://www.w3.org/2000/svg", b"") or not path.endswith(("html", "css", "/"))
    for path in ("/static/../server.py", "/examples/..%2fREADME.md", "/examples/none.jpg"):
        assert get(address, path).status == 404


def test_a_password_lets_in(networks):
    with served(networks, password="correct horse", hosts=("127.0.0.1",)) as address:
        assert get(address, "/").headers["location"] == "/login"
        assert get(address, "/static/page.js").status == 303
        assert get(address, "/login").status == 200
        with pytest.raises(InvalidStatus, match="403"), visiting(address):
            pass
        wrong = get(address, "/login", "POST", "password=wrong")
        assert "set-cookie" not in wrong.headers and wrong.headers["location"] == "/login?wrong"
        assert get(address, "/login", "POST", "password=" + 3000 * "x").status == 413
        right = get(address, "/login", "POST", "password=correct+horse")
        cookie = right.headers["set-cookie"]
        assert "HttpOnly" in cookie and "samesite=strict" in cookie.lower()
        token = cookie.split(";")[0]
        assert get(address, "/", Cookie=token).status == 200
        assert get(address, "/", Cookie=f"{COOKIE}=guess").status == 303
        with visiting(address, Cookie=token) as client:
            assert client.hello["kind"] == "hello"
        assert get(address, "/", Cookie=token, Host="elsewhere.example").status == 400


def test_a_message_longer_than_any_photo_closes_that_connection_alone(address, client):
    with visiting(address) as other, pytest.raises(ConnectionClosed):
        other.connection.send(bytes(MAX_BYTES + 10_000))
        other.connection.recv(timeout=60)
    assert json.dumps(client.upload(TABBY.read_bytes())["width"]) == "451"


@pytest.mark.parametrize("origin", ["http://[", "null", "file://", "http://evil.example@{}", "//", ""])
def test_an_origin_that_is_none_is_refused(address, origin):
    with pytest.raises(InvalidStatus, match="403"), visiting(address, Origin=origin.format(address)):
        pass


def test_of_another_visitor_nothing_can_be_asked(client, address):
    client.upload(TABBY.read_bytes())
    client.explain("headwater")
    with visiting(address) as other:
        for request, message in (
            ({"do": "file", "method": "headwater", "what": "overlay"}, "no map"),
            ({"do": "file", "what": "grid"}, "no map"),
            ({"do": "curves"}, "no photo"),
        ):
            for number in range(3):  # also with the numbers of the other's requests
                other.connection.send(json.dumps({**request, "id": number}))
                assert message in other.until("error")["message"]
        other.ask("paint")
        assert other.until("paint", "painted")["kind"] == "painted"


def test_one_visitor_too_many_is_told(networks):
    with served(networks) as address, ExitStack() as stay:
        for _ in range(MOST_VISITORS):
            stay.enter_context(visiting(address))
        with pytest.raises(ConnectionClosed, match=r"4503.*64 visitors"), visiting(address):
            pass


def test_passwords_cannot_be_tried_by_the_thousand(networks):
    with served(networks, password="correct horse") as address, ThreadPoolExecutor(40) as pool:
        began = time.monotonic()
        answers = list(pool.map(lambda k: get(address, "/login", "POST", f"password=wrong{k}").status, range(40)))
        tried = answers.count(303)
        assert tried + answers.count(429) == 40 and tried <= 8 * (time.monotonic() - began + 1)
        time.sleep(1.1)
        assert "set-cookie" in get(address, "/login", "POST", "password=correct+horse").headers


def test_the_page_at_an_ipv6_address(monkeypatch):
    """The name that a browser asks by is in brackets."""
    asked = []
    monkeypatch.setattr("headwater.serve.server.signal.signal", lambda *_: None)
    monkeypatch.setattr("headwater.serve.server.listen", lambda *_: listen("127.0.0.1", 0))  # where there is no IPv6
    monkeypatch.setattr("headwater.serve.server.uvicorn.Server.run", lambda self, sockets: asked.append(self.config))
    serve([hw.load_model("tiny20")], 0, "::1", say=lambda _: None)
    app = asked[0].app

    async def status(host: str) -> int:
        sent = []
        scope = {"type": "http", "method": "GET", "path": "/login", "headers": [(b"host", host.encode())]}

        async def send(message):
            sent.append(message)

        async def receive():
            await asyncio.sleep(3600)

        await app(scope, receive, send)
        return sent[0]["status"]

    assert asyncio.run(status("[::1]:7860")) == 200
    assert asyncio.run(status("elsewhere.example")) == 400
