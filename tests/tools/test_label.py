"""What `python -m tools label` says before it starts anything; the server itself: tests/label/serving.py."""

from __future__ import annotations

import shutil
import socket
import socketserver
import subprocess
import venv
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest

from bundlekit.cases.datalist import trained_cases, write_trained_cases
from tests.conftest import ROOT
from tools.bundles import names
from tools.label import app_folder
from tools.label.app_folder import make_app
from tools.label.environment import _stand_in_for_torchvision
from tools.label.server import _alone, _origins, _wait, label

NAME = "brats_resunet"


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    """What a training leaves; no state dict, since nothing here loads it."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "model.pt").write_bytes(b"weights")
    (folder / "settings.json").write_text("{}")
    (folder / "last.pt").write_bytes(b"to resume")
    return folder


def test_app_folder_is_a_copy(tmp_path: Path, weights: Path) -> None:
    assert make_app(tmp_path / "app", [NAME], {NAME: str(weights)}) == [NAME]
    copy = tmp_path / "app" / "model" / NAME
    assert {path.name for path in (copy / "models").iterdir()} == {"model.pt", "settings.json", "copied.json"}
    assert (copy / "configs" / "inference.yaml").read_bytes() == (
        ROOT / "bundles" / NAME / "configs" / "inference.yaml"
    ).read_bytes()
    assert (copy / NAME / "__init__.py").is_file()
    assert (tmp_path / "app" / "bundlekit" / "__init__.py").is_file()
    assert not (copy / "bundlekit").exists(), "one copy for all"
    assert (tmp_path / "app" / "main.py").is_file()


def test_the_cases_that_trained_the_weights_stay_known(tmp_path: Path, weights: Path) -> None:
    """Else an evaluation of the served weights, or of what is fine-tuned from them, would flatter."""
    write_trained_cases({"first": ""}, weights)
    (weights / "datalist.json").write_text('{"training": [{"case": "second", "patient": "p2"}], "validation": []}')
    models = tmp_path / "app" / "model" / NAME / "models"
    make_app(tmp_path / "app", [NAME], {NAME: str(weights)})
    assert trained_cases(models) == {"first": "", "second": "p2"}
    (models / "model.pt").write_bytes(b"fine-tuned")
    write_trained_cases({"third": ""}, models)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "model.pt").write_bytes(b"others")
    make_app(tmp_path / "app", [NAME], {NAME: str(tmp_path / "other")})
    assert trained_cases(models) == {}
    (kept,) = (models / "earlier").iterdir()
    assert trained_cases(kept) == {"third": ""}


def test_an_app_folder_of_an_earlier_version_gets_to_know_who_trained_its_weights(
    tmp_path: Path, weights: Path
) -> None:
    write_trained_cases({"first": ""}, weights)
    models = tmp_path / "app" / "model" / NAME / "models"
    make_app(tmp_path / "app", [NAME], {NAME: str(weights)})
    (models / "trained_on.json").unlink()  # which it did not write
    make_app(tmp_path / "app", [NAME], {NAME: str(weights)})
    assert trained_cases(models) == {"first": ""}


def test_fine_tuned_weights_are_kept_until_others_are_named(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app, models = tmp_path / "app", tmp_path / "app" / "model" / NAME / "models"
    served, same = models / "model.pt", {NAME: str(weights / "model.pt")}
    make_app(app, [NAME], same)
    make_app(app, [NAME], same)
    assert not capsys.readouterr().out, "nothing changed, nothing to say"
    assert not (models / "earlier").exists()

    served.write_bytes(b"fine-tuned")
    for given in ({}, same, {NAME: str(weights)}):
        make_app(app, [NAME], given)
        assert served.read_bytes() == b"fine-tuned", "the same command again, or without weights"
    assert "--fresh True" in capsys.readouterr().out

    other = tmp_path / "other"
    other.mkdir()
    (other / "model.pt").write_bytes(b"others")
    (other / "settings.json").write_text('{"channels": [2, 4]}')
    make_app(app, [NAME], {NAME: str(other)})
    assert served.read_bytes() == b"others"
    (kept,) = (models / "earlier").iterdir()
    assert (kept / "model.pt").read_bytes() == b"fine-tuned"
    assert (kept / "settings.json").read_text() == "{}"
    assert f"--weights {NAME}={kept} takes them again" in capsys.readouterr().out

    make_app(app, [NAME], {NAME: str(kept)})
    assert served.read_bytes() == b"fine-tuned", "brought back"
    assert (models / "settings.json").read_text() == "{}"

    monkeypatch.setattr(app_folder, "_weights_of", lambda name, given: weights / "model.pt")  # as if it shipped some
    make_app(app, [NAME], {})
    assert served.read_bytes() == b"fine-tuned"
    assert "--fresh True" in capsys.readouterr().out
    make_app(app, [NAME], {}, fresh=True)
    assert served.read_bytes() == b"weights"
    assert b"fine-tuned" in [(kept / "model.pt").read_bytes() for kept in (models / "earlier").iterdir()]


def test_weights_that_lie_in_the_folder_of_the_served_ones_are_not_lost(tmp_path: Path, weights: Path) -> None:
    app, models = tmp_path / "app", tmp_path / "app" / "model" / NAME / "models"
    make_app(app, [NAME], {NAME: str(weights)})
    (models / "model.pt").write_bytes(b"fine-tuned")
    for given in (models, models / "model.pt"):
        make_app(app, [NAME], {NAME: str(given)})
        assert (models / "model.pt").read_bytes() == b"fine-tuned"
        assert (models / "settings.json").read_text() == "{}"
    (models / "training").mkdir()
    (models / "training" / "last.pt").write_bytes(b"the last")
    write_trained_cases({"P1": ""}, models / "training")
    (models / "training" / "settings.json").write_text('{"channels": [2, 4]}')
    make_app(app, [NAME], {NAME: str(models / "training" / "last.pt")})
    assert (models / "model.pt").read_bytes() == b"the last"
    assert (models / "settings.json").read_text() == '{"channels": [2, 4]}'
    (kept,) = (models / "earlier").glob("training_*")
    assert trained_cases(kept) == {"P1": ""}
    make_app(app, [NAME], {NAME: str(kept)})  # as it says: the folder of the training is cleared by the next one
    assert (models / "model.pt").read_bytes() == b"the last"


def test_what_was_served_first_can_be_taken_back(tmp_path: Path, weights: Path) -> None:
    """Its hash is that of the file that was copied."""
    app, models = tmp_path / "app", tmp_path / "app" / "model" / NAME / "models"
    make_app(app, [NAME], {NAME: str(weights)})
    kept = app_folder.keep_aside(models, ("model.pt", "settings.json"))  # as a fine-tuning does
    (models / "model.pt").write_bytes(b"fine-tuned")
    make_app(app, [NAME], {NAME: str(kept)})
    assert (models / "model.pt").read_bytes() == b"weights"
    (models / "model.pt").write_bytes(b"fine-tuned again")
    make_app(app, [NAME], {NAME: str(kept)})
    assert (models / "model.pt").read_bytes() == b"fine-tuned again", "the same command again"


def test_newer_weights_of_the_bundle_replace_those_that_nothing_has_changed(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    app, models = tmp_path / "app", tmp_path / "app" / "model" / NAME / "models"
    monkeypatch.setattr(app_folder, "_weights_of", lambda name, given: weights / "model.pt")  # as if it shipped some
    make_app(app, [NAME], {})
    (weights / "model.pt").write_bytes(b"newer")
    make_app(app, [NAME], {})
    assert (models / "model.pt").read_bytes() == b"newer"
    assert [(kept / "model.pt").read_bytes() for kept in (models / "earlier").iterdir()] == [b"weights"]
    capsys.readouterr()

    (models / "model.pt").write_bytes(b"fine-tuned")
    (weights / "model.pt").write_bytes(b"newest")
    make_app(app, [NAME], {})
    assert (models / "model.pt").read_bytes() == b"fine-tuned"
    assert "fine-tuned there?" in capsys.readouterr().out


def test_a_second_network_comes_along_and_is_kept(tmp_path: Path, weights: Path) -> None:
    app, models = tmp_path / "app", tmp_path / "app" / "model" / NAME / "models"
    (weights / "settings.json").write_text('{"after_training": {"lowres": "lowres.pt"}}')
    (weights / "lowres.pt").write_bytes(b"second")
    make_app(app, [NAME], {NAME: str(weights)})
    assert (models / "lowres.pt").read_bytes() == b"second"
    (weights / "lowres.pt").write_bytes(b"newer")
    make_app(app, [NAME], {NAME: str(weights)}, fresh=True)
    assert (models / "lowres.pt").read_bytes() == b"newer"
    (weights / "lowres.pt").unlink()
    with pytest.raises(ValueError, match=r"lowres\.pt is not there, which its settings\.json names"):
        make_app(app, [NAME], {NAME: str(weights)})
    shutil.rmtree(models / "earlier")
    (weights / "lowres.pt").write_bytes(b"newer")
    settings = (models / "settings.json").read_bytes()
    (models / "settings.json").write_text("{broken")
    make_app(app, [NAME], {NAME: str(weights)}, fresh=True)
    assert (models / "settings.json").read_bytes() == settings
    shutil.rmtree(models / "earlier")
    other = tmp_path / "other"
    other.mkdir()
    (other / "model.pt").write_bytes(b"others")
    make_app(app, [NAME], {NAME: str(other)})
    assert not (models / "lowres.pt").exists(), "it is of the weights before"
    (kept,) = (models / "earlier").iterdir()
    assert (kept / "lowres.pt").read_bytes() == b"newer"


def test_weights_of_unknown_origin_are_kept(tmp_path: Path, weights: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A folder that an earlier version made has no record of what was copied."""
    make_app(tmp_path / "app", [NAME], {NAME: str(weights)})
    (tmp_path / "app" / ".made_by_label").unlink()
    served = tmp_path / "app" / "model" / NAME / "models" / "model.pt"
    served.with_name("copied.json").unlink()
    served.write_bytes(b"fine-tuned")
    make_app(tmp_path / "app", [NAME], {NAME: str(weights)})
    assert served.read_bytes() == b"fine-tuned"
    assert "--fresh True" in capsys.readouterr().out


def test_a_folder_of_somebody_else_is_left_alone(tmp_path: Path, weights: Path) -> None:
    """An app of MONAI Label's own is what its users give as --app: it has a main.py and a lib."""
    app = tmp_path / "monaibundle"
    (app / "lib").mkdir(parents=True)
    (app / "lib" / "own.py").write_text("kept")
    (app / "main.py").write_text("kept")
    with pytest.raises(ValueError, match="holds files that this server did not make"):
        make_app(app, [NAME], {NAME: str(weights)})
    assert sorted(file.name for file in app.rglob("*.*")) == ["main.py", "own.py"]
    (tmp_path / "empty").mkdir()
    make_app(tmp_path / "empty", [NAME], {NAME: str(weights)})
    (tmp_path / "empty" / ".made_by_label").unlink()  # of an earlier version, which made no mark
    make_app(tmp_path / "empty", [NAME], {NAME: str(weights)})


def test_the_server_is_asked_past_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):  # else loopback may be exempt, and nothing is tested
        monkeypatch.delenv(name, raising=False)
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")  # nobody listens there
    with socketserver.TCPServer(("127.0.0.1", 0), _Answer) as server:
        Thread(target=server.handle_request, daemon=True).start()
        running: Any = SimpleNamespace(poll=lambda: None)
        assert _wait(running, server.server_address[1], Path("log")) == {"models": {}}


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b'{"models": {}}')


def test_pages_of_other_servers_need_the_users_word() -> None:
    own = ["http://127.0.0.1:8001", "http://localhost:8001"]
    assert _origins(8001, "") == own
    assert _origins(8001, '["http://localhost:3000"]') == [*own, "http://localhost:3000"]
    for wrong in ("*", '["*"]', "http://localhost:3000", '{"a": 1}'):
        with pytest.raises(ValueError, match="a list in JSON"):
            _origins(8001, wrong)


@pytest.mark.parametrize("port", ["abc", 99999, 0, 80.5, True])
def test_a_port_is_a_number_of_its_range(tmp_path: Path, port: Any) -> None:
    with pytest.raises(ValueError, match="from 1 to 65535"):
        label(str(tmp_path), port=port, app=str(tmp_path / "app"))
    assert not (tmp_path / "app").exists()


def test_untrained_networks_are_not_served(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app_folder, "_weights_of", lambda name, given: None)  # as if none shipped any
    with pytest.raises(ValueError, match=r"not trained is not served.*--weights brats_resunet="):
        make_app(tmp_path / "app", [NAME], {})
    with pytest.raises(ValueError, match="no trained weights for"):
        make_app(tmp_path / "app", None, {})
    assert all(f"{name}: no trained weights" in capsys.readouterr().out for name in names()[:1])
    assert not (tmp_path / "app").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"bundles": "spleen"}, "no bundle named 'spleen'"),
        ({"weights": "spleen=x.pt"}, "no bundle named 'spleen'"),
        ({"weights": "x.pt"}, "expected NAME=PATH"),
        ({"weights": f"{NAME}=nothing.pt"}, "no such file; expected the model.pt"),
    ],
)
def test_bad_arguments(tmp_path: Path, arguments: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        label(str(tmp_path), app=str(tmp_path / "app"), **arguments)  # type: ignore[arg-type]


def test_studies_and_port_are_checked_first(tmp_path: Path, weights: Path) -> None:
    given = {"weights": f"{NAME}={weights}", "bundles": NAME, "app": str(tmp_path / "app")}
    with pytest.raises(ValueError, match="no such folder"):
        label(str(tmp_path / "nowhere"), **given)  # type: ignore[arg-type]
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ValueError, match=r"cannot be used.*give another one"):
            label(str(tmp_path), port=taken.getsockname()[1], **given)  # type: ignore[arg-type]
    assert not (tmp_path / "app").exists(), "a server that runs has its copies there"
    with _alone(tmp_path / "app"), pytest.raises(ValueError, match=r"app is that of a server that runs.*--app"):
        label(str(tmp_path), **given)  # type: ignore[arg-type]
    assert not (tmp_path / "app").exists()


def test_what_monai_label_imports_of_torchvision_is_there(tmp_path: Path) -> None:
    """Without PyTorch, since torchvision's own functions need one build of it."""
    venv.create(tmp_path / "env", with_pip=False, symlinks=True)
    python = tmp_path / "env" / "bin" / "python"
    for _again in range(2):
        _stand_in_for_torchvision(python)
    code = "import torchvision.utils as u; print(u.__file__); u.save_image(None, 'x.png')"
    done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert Path(done.stdout.strip()).is_relative_to(tmp_path / "env")
    assert (
        "NotImplementedError: torchvision.utils.save_image is called, but torchvision is not installed" in done.stderr
    )
    assert not (tmp_path / "x.png").exists()
