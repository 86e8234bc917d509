"""The command line under interruptions, closed and narrow output, wrong options, and with code of one's own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import pytest
from command import headwater, started
from helpers import EXAMPLES

import headwater as hw
from headwater.errors import DownloadError, InputError

TABBY = str(EXAMPLES / "tabby.jpg")
COMMAND = [sys.executable, "-m", "headwater"]


@pytest.mark.parametrize("arguments", [["--help"], ["explain", "--help"], ["--version"]])
def test_help_needs_no_torch(arguments):
    program = f"""
import sys
sys.argv = ["headwater", *{arguments!r}]
from headwater.__main__ import main
try:
    main()
finally:
    print([name for name in ("torch", "numpy", "matplotlib", "PIL", "pandas") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_public_names_are_there_and_listed_once():
    assert {"LRP", "explain", "load_model", "rules", "Composite"} <= set(dir(hw))
    assert all(getattr(hw, name) is not None for name in hw.__all__)
    with pytest.raises(AttributeError, match="nothing"):
        _ = hw.nothing


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_while_it_is_being_loaded_it_says_so_in_one_line(number):
    process = subprocess.Popen([*COMMAND, "explain", TABBY, "--model", "tiny20"], stderr=subprocess.PIPE, text=True)
    while "torch" not in open(f"/proc/{process.pid}/maps").read():  # noqa: SIM115, PTH123
        time.sleep(0.01)
    process.send_signal(number)
    _, errors = process.communicate()
    assert errors == "headwater: interrupted; nothing was begun\n"
    assert process.returncode == 128 + number


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted_at_work_it_says_what_is_done_and_keeps_it(tmp_path, number):
    out, errors = tmp_path / "out", tmp_path / "errors"
    process = started(
        "explain", *[TABBY] * 200, "--model", "tiny20", "--out", str(out), "--batch-size", "1", stderr=errors
    )
    while not list(out.glob("*.figure.png")) and process.is_alive():
        time.sleep(0.01)
    os.kill(process.pid, number)
    process.join(60)
    assert process.exitcode == 128 + number
    assert errors.read_text().startswith("headwater: interrupted; ")
    assert errors.read_text().endswith(f" of 200 done, in {out}\n") and errors.read_text().count("\n") == 1
    assert not list(out.glob("*.tmp*")), "nothing half written"
    assert list(out.glob("*.figure.png"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--devices", ","], "names no device"),
        (["--devices", "meta"], "computes no values"),
        (["--devices", "cpu,nowhere"], "device 'nowhere' is not available here"),
        (["--seed", "1e30"], "valid integer"),
        (["--seed", str(2**70)], "less than or equal"),
        (["--seed", "-1"], "greater than or equal"),
        (["--out", ""], "the name of the folder is empty"),
        (["--data", " "], "the name of the folder is empty"),
        (["--step", "1.5"], "valid integer"),
        (["--labels", "nowhere.csv"], "nowhere.csv cannot be read"),
        (["--methods", ","], "methods must be different names"),
        (["--protocol", ""], "protocols must be of published, budget"),
    ],
)
def test_wrong_options_of_evaluate_are_said_before_any_work(tmp_path, options, message):
    valid = ["--data", str(EXAMPLES), "--model", "tiny20", "--methods", "random", "--out", str(tmp_path / "out")]
    done = headwater("evaluate", *valid, *options, cwd=tmp_path)
    assert done.returncode in (1, 2)
    assert message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("target", ["²", "9999999999999999999999", "-1", "", "nan"])
def test_wrong_targets_are_said_in_one_line(tmp_path, target):
    done = headwater("explain", TABBY, "--model", "tiny20", "--target", target, "--out", str(tmp_path / "out"))
    assert done.returncode == 1
    assert "Traceback" not in done.stderr and "error" in done.stderr


def test_closed_and_ascii_output(tmp_path):
    arguments = f"explain {TABBY} --model tiny20 --out {tmp_path}/é"
    for redirected in (">&-", ">&- 2>&-", "| true"):
        done = subprocess.run(
            f"set -o pipefail; {' '.join(COMMAND)} {arguments} {redirected}",
            shell=True,
            executable="/bin/bash",
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, "PYTHONIOENCODING": "ascii"},
        )
        assert "Traceback" not in done.stderr and done.stderr == ""
        assert done.returncode in (0, 1)
    done = headwater(*arguments.split(), PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0, done.stderr


def test_methods_say_what_they_do():
    done = headwater("methods")
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in done.stdout.splitlines()}
    assert set(lines) == set(hw.list_methods())
    assert "Score-CAM" in lines["scorecam"] and all(len(text) > 10 for text in lines.values())


# -- networks of one's own --------------------------------------------------------------------------------------------

CODE = """
import torchvision, headwater as hw
def small():
    model = torchvision.models.resnet18(num_classes=3)
    model.card = hw.ModelCard("small", "as made", hw.Preprocessing(40, 32), ("cat", "dog", "cup"))
    return model
def broken():
    raise KeyError("oh")
def other():
    return 3
"""


def test_code_of_ones_own_runs_only_when_it_is_allowed(tmp_path):
    (tmp_path / "own_networks.py").write_text(CODE + "\nopen('ran', 'w').close()\n")
    arguments = ["explain", TABBY, "--model", "own_networks:small", "--out", str(tmp_path / "out")]
    refused = headwater(*arguments, cwd=tmp_path)
    assert refused.returncode == 1 and "--allow-code" in refused.stderr
    assert not (tmp_path / "ran").exists()
    allowed = headwater(*arguments, "--allow-code", "--target", "cup", cwd=tmp_path)
    assert allowed.returncode == 0, allowed.stderr
    assert "tabby.jpg: cup" in allowed.stdout


def test_weights_for_code_of_ones_own_are_loaded_safely(tmp_path, monkeypatch):
    import torch
    from safetensors.torch import save_file

    (tmp_path / "own_networks_too.py").write_text(CODE)
    monkeypatch.chdir(tmp_path)
    model = hw.load_model("own_networks_too:small", allow_code=True)
    state = {name: torch.full_like(tensor, 0.5) for name, tensor in model.state_dict().items()}
    save_file(state, tmp_path / "weights.safetensors")
    filled = hw.load_model("own_networks_too:small", str(tmp_path / "weights.safetensors"), allow_code=True)
    assert (filled.fc.weight == 0.5).all() and filled.card.weights.endswith("weights.safetensors")
    for name, message in (("broken", "KeyError: 'oh'"), ("other", "got int"), ("nothing", "no attribute")):
        with pytest.raises(InputError, match=message):
            hw.load_model(f"own_networks_too:{name}", allow_code=True)
    with pytest.raises(InputError, match="No module named 'nowhere'"):
        hw.load_model("nowhere:small", allow_code=True)
    assert str(tmp_path) not in sys.path


def test_without_a_connection_timm_fails_at_once_and_quietly(monkeypatch, capfd, tmp_path):
    pytest.importorskip("timm")
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "https://no-such-host.invalid")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    offline = constants.HF_HUB_OFFLINE
    with pytest.raises(DownloadError, match="timm:resnet18 are not in the cache and could not be downloaded"):
        hw.load_model("timm:resnet18")
    assert offline == constants.HF_HUB_OFFLINE
    assert "Retrying" not in capfd.readouterr().err


def test_a_network_that_cannot_be_traced_is_one_line(tmp_path):
    (tmp_path / "branching.py").write_text(
        "from torch import nn\n\n"
        "class Branching(nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.head = nn.Linear(3, 2)\n"
        "    def forward(self, x):\n"
        "        return self.head(x.mean((2, 3))) * (2 if x.sum() > 0 else 1)\n"
    )
    done = headwater(
        *("explain", str(EXAMPLES / "tabby.jpg"), "--model", "branching:Branching", "--allow-code"),
        *("--out", str(tmp_path)),
        cwd=tmp_path,
    )
    assert done.returncode == 1
    (line,) = done.stderr.strip().splitlines()
    assert "could not be traced" in line
