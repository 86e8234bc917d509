"""Runs on a Ray cluster of several processes on this machine: the tables and files of one machine, whatever dies."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from pathlib import Path

import helpers
import numpy as np
import pytest
import torch
from command import headwater
from helpers import TinyResidual, settle
from PIL import Image
from torch import nn

import headwater as hw
from headwater.cluster import LOST, Ray
from headwater.cluster.ray_engine import _made, _versions
from headwater.errors import ClusterError, DataError, InputError, MissingDependencyError, StorageError
from headwater.evaluation import Settings, evaluate
from headwater.explanation_run import Wanted, explain_all

pd = pytest.importorskip("pandas")
ray = pytest.importorskip("ray", reason="needs the extra headwater[ray]")
psutil = pytest.importorskip("psutil")
SETTINGS = Settings(("otsuki2024", "random"), 20, ("budget",), step=60, batch_size=2, labels="predicted")
BASELINE = Settings(("random",), 6, ("budget",), step=60, batch_size=3, labels="predicted")


class Slow(TinyResidual):
    """Takes its time, so that something can be killed meanwhile."""

    def forward(self, x):
        time.sleep(0.05)
        return super().forward(x)


class Poison(hw.Preprocessing):
    """The process ends at a white image, as at a file that a decoder crashes on."""

    def __call__(self, image):
        if image.getextrema() == ((255, 255),) * 3:
            os._exit(1)
        return super().__call__(image)


@pytest.fixture(autouse=True)
def sent_by_value():
    """Workers do not find the modules of the tests."""
    modules = [sys.modules[__name__], helpers]
    for module in modules:
        ray.cloudpickle.register_pickle_by_value(module)
    yield
    for module in modules:
        ray.cloudpickle.unregister_pickle_by_value(module)
    ray.shutdown()


@pytest.fixture(autouse=True)
def one_thread():
    """As workers have, so that sums are made in the same order."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def network(kind: type[nn.Module] = Slow, preprocessing: type[hw.Preprocessing] = hw.Preprocessing):
    torch.manual_seed(0)
    made = settle(kind(classes=4))
    made.card = hw.ModelCard("tiny-residual", "random", preprocessing(16, 16), ("a", "b", "c", "d"))
    return made


def noise(path, seed=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(path)


def folder(root, count=20):
    for k in range(count):
        noise(root / f"{k % 3}" / f"{k:02d}.png", k)
    return root


def workers(called="ray::"):
    """Processes of this test's cluster by their name; one that ends while we look is none."""
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):  # a zombie, too
            if called in "".join(process.cmdline()[:1]):
                found.append(process)
    return found


def same_files(one: Path, other: Path, besides=()):
    """Whether two folders hold the same files with the same bytes."""
    names = [{p.relative_to(root) for p in root.rglob("*") if p.is_file()} for root in (one, other)]
    differing = [n for n in names[0] & names[1] if (one / n).read_bytes() != (other / n).read_bytes()]
    assert names[0] == names[1] and {str(n) for n in differing} <= set(besides), differing


class Killer:
    """Kills a worker that is measuring, after the first chunk has come back."""

    def __init__(self, kills=1):
        self.seen, self.kills, self.killed = [], kills, []

    def __call__(self, done, total, seconds):
        self.seen.append(done)
        busy = [p for p in workers("MapWorker") if p.pid not in self.killed]
        if len(self.killed) < self.kills and busy:
            self.killed.append(busy[0].pid)
            busy[0].send_signal(signal.SIGKILL)


@contextmanager
def s3(monkeypatch, root: Path):
    """A local S3 server with a copy of a folder in its bucket; yields the bucket's address and the server's."""
    server = pytest.importorskip("moto.server")
    boto3 = pytest.importorskip("boto3")
    running = server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    try:
        client = boto3.client("s3")
        client.create_bucket(Bucket="photos")
        for path in root.rglob("*.png"):
            client.upload_file(str(path), "photos", f"set/{path.relative_to(root).as_posix()}")
        import s3fs

        s3fs.S3FileSystem.clear_instance_cache()  # with another server's address
        yield "s3://photos/set", f"http://{host}:{port}"
    finally:
        for what, content in (("reset-auth", b"inf"), ("reset", b"")):  # its state outlives the server
            ask(f"http://{host}:{port}/moto-api/{what}", content)
        running.stop()


def ask(address, content):
    request = urllib.request.Request(address, content, {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request).close()


def deny(server):
    """From now on the server asks for credentials that there are not."""
    ask(f"{server}/moto-api/reset-auth", b"0")


def test_images_from_s3_and_a_worker_killed_in_the_middle_nothing_is_lost_or_doubled(tmp_path, monkeypatch):
    images = folder(tmp_path / "images")
    (images / "1" / "04.png").write_bytes(b"nothing")
    alone = evaluate(network(), images, SETTINGS, tmp_path / "alone")
    before = signal.getsignal(signal.SIGTERM)
    with s3(monkeypatch, images) as (address, _):
        killer = Killer()
        table = evaluate(network(), address, SETTINGS, tmp_path / "ray", engine=Ray(3), progress=killer)
        assert killer.killed and killer.seen == list(range(2, 21, 2))
        assert signal.getsignal(signal.SIGTERM) is before and not ray.is_initialized()
        evaluate(network(), address, SETTINGS, tmp_path / "one")
    readable = alone["error"].isna()
    assert table[readable].equals(alone[readable]) and not table.duplicated(["image", "method"]).any()
    assert table[~readable]["error"].str.startswith("s3://photos/set/1/04.png is not an image").all()
    same_files(tmp_path / "one", tmp_path / "ray", ["run.json"])


def test_a_finished_run_starts_no_cluster(tmp_path):
    images = folder(tmp_path / "images", 6)
    alone = evaluate(network(TinyResidual), images, BASELINE, tmp_path / "out")
    assert evaluate(network(TinyResidual), images, BASELINE, tmp_path / "out", engine=Ray()).equals(alone)


@pytest.mark.full
def test_the_table_is_the_same_after_three_kills_and_an_interruption(tmp_path):
    class StopError(Exception):
        pass

    images = folder(tmp_path / "images")
    evaluate(network(), images, SETTINGS, tmp_path / "alone")
    killer = Killer(3)

    def stop(done, *rest):
        killer(done, *rest)
        if done >= 12:
            raise StopError

    with pytest.raises(StopError):
        evaluate(network(), images, SETTINGS, tmp_path / "ray", engine=Ray(2), progress=stop)
    kept = len(list(tmp_path.glob("ray/rows/*.parquet")))
    seen = []
    evaluate(network(), images, SETTINGS, tmp_path / "ray", engine=Ray(2), progress=lambda done, *_: seen.append(done))
    assert len(killer.killed) == 3 and kept == 6 and len(seen) == 10 - kept
    same_files(tmp_path / "alone", tmp_path / "ray", ["run.json"])


@pytest.mark.full
def test_an_image_on_which_workers_die_is_a_failed_row(tmp_path):
    images = folder(tmp_path / "images", 5)
    Image.new("RGB", (16, 16), "white").save(images / "white.png")
    table = evaluate(network(TinyResidual, Poison), images, BASELINE, tmp_path / "ray", engine=Ray(2))
    failed = table[table["error"].notna()]
    assert failed["image"].tolist() == ["white.png"] and failed["error"].str.startswith(LOST).all()
    again = evaluate(network(TinyResidual, Poison), images, BASELINE, tmp_path / "ray", progress=pytest.fail)
    assert again.equals(table), "it is not tried again, and not opened in this process"
    (images / "white.png").write_bytes(b"nothing")
    alone = evaluate(network(TinyResidual, Poison), images, BASELINE, tmp_path / "alone")
    numbers = alone.columns.difference(["error"])
    pd.testing.assert_frame_equal(alone[numbers], table[numbers], check_exact=True)


@pytest.mark.full
def test_maps_of_many_images_with_a_worker_killed(tmp_path):
    images = folder(tmp_path / "images", 12)
    noise(images / "1" / "01.jpg", 5)
    (images / "2" / "02.png").write_bytes(b"nothing")
    wanted = Wanted(batch_size=2, scales=True)
    alone = explain_all(network(), [images], wanted, tmp_path / "alone")
    killer = Killer()
    table = explain_all(network(), [images], wanted, tmp_path / "ray", engine=Ray(2), progress=killer)
    assert killer.killed and table.equals(alone)
    same_files(tmp_path / "alone", tmp_path / "ray")


@pytest.mark.full
def test_a_worker_without_the_code_of_the_network(tmp_path, monkeypatch):
    images = folder(tmp_path / "images", 6)
    module = tmp_path / "code" / "only_here.py"
    module.parent.mkdir()
    module.write_text("from torch import nn\nclass Odd(nn.Flatten): pass\n")
    monkeypatch.syspath_prepend(module.parent)
    made = network(TinyResidual)
    import only_here  # type: ignore[import-not-found]

    made.extra = only_here.Odd()
    module.unlink()
    with pytest.raises(ClusterError, match=r"cannot load the network and its weights .*'only_here'.*same command"):
        evaluate(made, images, BASELINE, tmp_path / "out", engine=Ray(2))


@pytest.mark.full
def test_storage_that_denies_access_in_the_middle_keeps_what_is_finished(tmp_path, monkeypatch):
    images = folder(tmp_path / "images", 20)
    with s3(monkeypatch, images) as (address, server):
        deny_once = iter([True])

        def lose_access(*_):
            if next(deny_once, False):
                deny(server)

        with pytest.raises(StorageError, match="denies access to s3://photos/set/"):
            evaluate(network(), address, SETTINGS, tmp_path / "ray", engine=Ray(2), progress=lose_access)
        kept = list((tmp_path / "ray" / "rows").glob("*.parquet"))
        assert 0 < len(kept) < 10 and not (tmp_path / "ray" / "results.parquet").exists()
        with pytest.raises(StorageError, match="denies access to s3://photos/set "):
            evaluate(network(), address, SETTINGS, tmp_path / "other", engine=Ray(2))


@pytest.mark.full
def test_the_commands(tmp_path, monkeypatch):
    images = folder(tmp_path / "images", 4)
    with s3(monkeypatch, images) as (address, _):
        options = f"--data {address} --model tiny20 --methods random --step 2048 --protocol budget --labels predicted"
        environment = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        environment["OMP_NUM_THREADS"] = "1"
        for engine in ("local", "ray"):
            words = f"evaluate {options} --engine {engine} --out {tmp_path / engine}"
            done = headwater(*words.split(), **environment)
            assert done.returncode == 0, done.stderr
            assert "4 of 4 images" in done.stderr
        same_files(tmp_path / "local", tmp_path / "ray", ["run.json"])
        (images / "0" / "bad.png").write_bytes(b"nothing")
        words = f"explain {address} {images / '0'} --model tiny20 --engine ray --workers 2 --out {tmp_path / 'maps'}"
        done = headwater(*words.split(), **environment)
    assert done.returncode == 1 and "1 of 7 images could not be explained" in done.stderr, done.stderr
    table = pd.read_parquet(tmp_path / "maps" / "manifest.parquet")
    assert table["error"].notna().sum() == 1 and (table["conservation_error"].dropna() < 1e-5).all()
    assert all((tmp_path / "maps" / name).is_file() for name in table["map"].dropna())


# -- without a cluster ------------------------------------------------------------------------------------------------


def test_without_ray_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray.data", None)
    with pytest.raises(
        MissingDependencyError, match=r"the engine 'ray' needs ray\.data: pip install 'headwater\[ray\]'"
    ):
        Ray()


def test_options_that_do_not_go_together(tmp_path):
    words = ["evaluate", "--data", str(tmp_path), "--methods", "random", "--out", str(tmp_path / "out")]
    for options, message in (
        (("--engine", "spark"), "--engine is local or ray, not 'spark'"),
        (("--workers", "2"), "--workers goes with --engine ray"),
        (("--engine", "ray", "--devices", "cpu"), "--devices goes with --engine local"),
    ):
        done = headwater(*words, *options)
        assert done.returncode == 1 and message in done.stderr, done.stderr
    done = headwater("evaluate", "--data", str(tmp_path), "--methods", "random", "--out", "s3://bucket/out")
    assert done.returncode == 2 and "results are written to a folder" in done.stderr
    done = headwater("explain", str(tmp_path), "--engine", "ray", "--flow", "--out", str(tmp_path / "out"))
    assert done.returncode == 1 and "--flow" in done.stderr
    with pytest.raises(InputError, match="devices or engine, not both"):
        evaluate(network(), tmp_path, BASELINE, tmp_path / "out", engine=Ray(), devices=["cpu"])
    with pytest.raises(InputError, match="at least 1, got 0"):
        Ray(0)


def test_a_worker_of_another_version_and_one_whose_out_is_another_folder(tmp_path):
    with pytest.raises(ClusterError, match=r"has headwater .* with torch .*, the run was started with 99\.0"):
        _made(b"", "99.0")
    with pytest.raises(ClusterError, match=r"does not see .*; images must be in the same place on every machine"):
        _made(b"", _versions(), tmp_path / "photo.png")
    from headwater.explanation_run import _Explainer

    with pytest.raises(ClusterError, match="is not the same folder on every machine"):
        _Explainer(network(), Wanted(), tmp_path, "token", frozenset(), None)


def test_a_network_that_cannot_be_sent(tmp_path):
    images, made = folder(tmp_path / "images", 6), network(TinyResidual)

    class Closed(nn.Flatten):
        def __getstate__(self):
            raise TypeError("no")

        def __deepcopy__(self, memo):
            return self

    made.extra = Closed()
    with pytest.raises(ClusterError, match=r"cannot be sent to workers \(TypeError: no\)"):
        evaluate(made, images, BASELINE, tmp_path / "out", engine=Ray(2))


def test_a_cluster_that_cannot_be_reached(tmp_path, monkeypatch):
    images = folder(tmp_path / "images", 6)

    def refuse(**options):
        assert "num_cpus" not in options
        raise ConnectionError("nobody there\nand more")

    monkeypatch.setattr(ray, "init", refuse)
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"127.0.0.1:{server.getsockname()[1]}"
        monkeypatch.setenv("RAY_ADDRESS", address)
        with pytest.raises(ClusterError, match=rf"at {address} cannot be reached \(ConnectionError: nobody there\)"):
            evaluate(network(TinyResidual), images, BASELINE, tmp_path / "out", engine=Ray(2))
    for refused in (address, f"ray://{address}"):  # asked before Ray, which would try for a quarter of an hour
        monkeypatch.setenv("RAY_ADDRESS", refused)
        with pytest.raises(ClusterError, match=rf"at {refused} cannot be reached \(ConnectionRefusedError"):
            evaluate(network(TinyResidual), images, BASELINE, tmp_path / "out", engine=Ray(2))


def test_maps_of_folders_on_one_machine(tmp_path):
    images = folder(tmp_path / "images", 4)
    noise(tmp_path / "other" / "00.png", 7)
    noise(images / "00.png", 8)
    out, seen = tmp_path / "maps", []
    places = [images, tmp_path / "other" / "00.png", images / "none.png", images]
    table = explain_all(network(TinyResidual), places, Wanted(batch_size=4), out, progress=lambda *a: seen.append(a[0]))
    names = table["image"].tolist()
    assert len(names) == len(set(names)) == 7 and seen == [4, 7]
    assert table[table["error"].notna()]["image"].tolist() == ["none.png"]
    e = hw.explain(images / "1" / "01.png", network(TinyResidual))
    row = table[table["image"] == "1/01.png"].iloc[0]
    assert row["target"] == e.predicted and row["probability"] == pytest.approx(e.probability.item(), rel=1e-5)
    assert row["conservation_error"] < 1e-5
    np.testing.assert_allclose(np.load(out / row["map"]), e.heatmap[0].numpy(), atol=1e-6)
    again = explain_all(network(TinyResidual), places, Wanted(batch_size=4), out, progress=pytest.fail)
    assert again.equals(table)
    with pytest.raises(DataError, match=r"method: headwater there, random asked"):
        explain_all(network(TinyResidual), places, Wanted("random", batch_size=4), out)
    with pytest.raises(DataError, match="no image is given"):
        explain_all(network(TinyResidual), [], Wanted(), out)
