"""Settings travel from training to inference beside the weights."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bundlekit.errors import BundleError
from bundlekit.weights.settings import (
    record_setting,
    recorded_settings,
    require_as_recorded,
    trained_settings,
    write_settings,
)

TRAIN = """
device: $torch.device('cpu')
init_filters: 16
spacing: [1.0, 1.0, 1.0]
settings:
  init_filters: "@init_filters"
  spacing: "@spacing"
  fit: resize
"""
DEFAULTS = {"init_filters": 16, "fit": "resize", "spacing": [1.0, 1.0, 1.0]}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A bundle whose training has three settings."""
    (tmp_path / "bundle" / "configs").mkdir(parents=True)
    (tmp_path / "bundle" / "configs" / "train.yaml").write_text(TRAIN)
    return tmp_path / "bundle"


def settings_of(checkpoint: Path, root: Path) -> dict:
    found = recorded_settings(checkpoint, root)
    assert not {"device", "after_training"} & set(found)
    found.pop("settings", None)
    return found


def test_what_is_written_is_read(root: Path, tmp_path: Path) -> None:
    write_settings({"init_filters": 8, "fit": "none", "spacing": None}, str(tmp_path / "models"))
    found = settings_of(tmp_path / "models" / "model.pt", root)
    assert found == {"init_filters": 8, "fit": "none", "spacing": None}


def test_train_yaml_counts_where_nothing_is_recorded(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert settings_of(tmp_path / "model.pt", root) == DEFAULTS
    assert not caplog.text
    (tmp_path / "copied").mkdir()
    (tmp_path / "copied" / "model.pt").touch()
    assert settings_of(tmp_path / "copied" / "model.pt", root) == DEFAULTS
    assert "has no settings.json beside it and is taken as trained with the values of train.yaml" in caplog.text
    write_settings({"init_filters": 4}, str(tmp_path))
    assert settings_of(tmp_path / "last.pt", root) == {**DEFAULTS, "init_filters": 4}
    (root / "configs" / "train.yaml").rename(root / "configs" / "train.json")
    (root / "configs" / "train.json").write_text(json.dumps({"init_filters": 2}))
    assert settings_of(tmp_path / "elsewhere" / "model.pt", root) == {"init_filters": 2}


def test_what_is_chosen_later_stands_apart(root: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    write_settings({"init_filters": 4}, str(tmp_path))
    record_setting(model, "minimum_ml", 0.1)
    record_setting(model, "minimum_ml", 0.2)
    record_setting(model, "fill", True)
    recorded = json.loads((tmp_path / "settings.json").read_text())
    assert recorded == {"init_filters": 4, "after_training": {"minimum_ml": 0.2, "fill": True}}
    assert trained_settings(model) == {"init_filters": 4}
    assert settings_of(model, root) == {**DEFAULTS, "init_filters": 4, "minimum_ml": 0.2, "fill": True}


def test_a_file_of_an_earlier_version_is_read(root: Path, tmp_path: Path) -> None:
    write_settings({"init_filters": 4, "minimum_ml": 0.1}, str(tmp_path))
    assert settings_of(tmp_path / "model.pt", root) == {**DEFAULTS, "init_filters": 4, "minimum_ml": 0.1}
    record_setting(tmp_path / "model.pt", "minimum_ml", 0.3)
    assert settings_of(tmp_path / "model.pt", root)["minimum_ml"] == 0.3


def test_weights_that_a_training_begins_with_have_to_exist(root: Path, tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    with pytest.raises(BundleError, match=r"model\.pt\n[\s\S]*no such file[\s\S]*--pretrained FILE"):
        recorded_settings(model, root, must_exist=True)
    model.touch()
    assert recorded_settings(model, root, must_exist=True) == recorded_settings(model, root)


@pytest.mark.parametrize(("value", "told"), [(0.3, True), (1.0, False)])
def test_a_setting_that_is_gone_is_told(
    value: float, told: bool, root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    record_setting(tmp_path / "model.pt", "white_matter_weight", value)
    recorded_settings(tmp_path / "model.pt", root)
    assert ("white_matter_weight 0.3, which this version does not apply" in caplog.text) == told


def test_fine_tuning_needs_the_preprocessing_of_the_weights(tmp_path: Path) -> None:
    model = tmp_path / "model.pt"
    require_as_recorded(model, {"fit": "resize"}, ["fit"])
    write_settings({"fit": "native", "patch_size": [8, 8, 8]}, str(tmp_path))
    require_as_recorded(model, {"fit": "native", "patch_size": [4, 4, 4]}, ["fit"])
    with pytest.raises(BundleError, match=r"trained with fit native[\s\S]*now fit resize"):
        require_as_recorded(model, {"fit": "resize"}, ["fit"])


@pytest.mark.parametrize("text", ["{", "[1, 2]", ""])
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BundleError, match=r"settings\.json[\s\S]*expected"):
        recorded_settings(tmp_path / "model.pt", tmp_path)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ('{"patch_size": 64}', "patch_size is 64; expected a list of 3"),
        ('{"channels": "wide"}', "channels is 'wide'; expected a list"),
        ('{"after_training": {"fill_core": "false"}}', "fill_core is 'false'; expected True or False"),
        ('{"after_training": 3}', "cannot be read"),
    ],
)
def test_values_that_cannot_be_are_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(BundleError) as error:
        recorded_settings(tmp_path / "model.pt", tmp_path)
    assert told in str(error.value)
    assert "settings.json" in str(error.value)


@pytest.mark.parametrize(
    "content", [{"init_filters": "$__import__('os')"}, {"after_training": {"x": "@device"}}, {"a": {"_target_": "b"}}]
)
def test_expressions_of_strangers_are_refused(root: Path, tmp_path: Path, content: dict) -> None:
    (tmp_path / "settings.json").write_text(json.dumps(content))
    for read in (
        lambda file: recorded_settings(file, root),
        trained_settings,
        lambda file: record_setting(file, "x", 1),
    ):
        with pytest.raises(BundleError, match=r"settings\.json: "):
            read(tmp_path / "model.pt")
