"""`python -m tools report`: its settings are those of the bundle that made the results."""

from __future__ import annotations

from pathlib import Path

import pytest

from bundlekit.report.table import COLUMNS, VolumeTable
from tools.report import report


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"datset_dir": "DIR"}, "no setting --datset_dir of brats_resunet's inference.yaml"),
        ({"allow_unprepared": "false"}, "--allow_unprepared is 'false'; expected"),
        ({"dataset_dir": "/no/such/folder"}, "/no/such/folder\n *found: *no such file or folder"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, str], told: str, tmp_path: Path) -> None:
    table = VolumeTable(tmp_path)
    table.begin()
    row = {
        **dict.fromkeys(COLUMNS, ""),
        "case": "a",
        "bundle": "brats_resunet",
        "name": "NCR",
        "ml": 1,
        "largest_ml": 1,
    }
    table.add([row])
    with pytest.raises(ValueError, match=told):
        report(str(tmp_path), **settings)
    assert not (tmp_path / "report").exists()


def test_a_network_of_other_classes_is_told_apart(tmp_path: Path) -> None:
    table = VolumeTable(tmp_path)
    table.begin()
    organs = dict.fromkeys(COLUMNS, "") | {"case": "a", "bundle": "abdomen_ct_vnet", "kind": "class"}
    table.add([{**organs, "name": name, "ml": 1, "largest_ml": 1} for name in ("spleen", "pancreas")])
    with pytest.raises(ValueError, match=r"the classes pancreas, spleen; .* --ckpt_dir or --checkpoint"):
        report(str(tmp_path), dataset_dir=str(tmp_path / "data"))
    report(str(tmp_path))  # the pages' numbers alone need no names
