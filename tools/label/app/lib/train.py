"""Fine-tuning of a bundle on the labels saved in the server."""

from __future__ import annotations

import json
import os
from typing import Any

from monailabel.tasks.train.bundle import BundleTrainTask

from bundlekit.expressions import refuse_expressions
from bundlekit.weights.settings import AFTER_TRAINING, read_settings
from lib.bundles import handed_on, package
from lib.datastore import CaseDatastore

_OF_THE_SERVER = ("model", "device", "datalist", "bundle_root")  # in a request these are not settings of train.yaml


class CaseTrain(BundleTrainTask):
    """`BundleTrainTask` that leaves cases, split and checks to the bundle's own config.

    The saved labels ("final") go to it as a datalist; network and preprocessing are those of the weights it starts from
    (`models/settings.json`). A request may set anything else in `train.yaml` too, e.g. `{"max_epochs": 5,
    "learning_rate": 1e-5}`. The newly trained weights replace those of the server's copy of the bundle.

    Args:
        name: of the bundle, and of its package.
        path: folder of the bundle.
        conf: the server's `--conf`.
    """

    def __init__(self, name: str, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, load_strict=True)
        self.name = name
        self.request: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """What a viewer offers to set; weights to start from are those that the server infers with."""
        return {**super().config(), "model_filename": ["model.pt"]}

    def __call__(self, request: dict[str, Any], datastore: CaseDatastore) -> dict[str, Any]:
        """Train.

        Raises:
            ValueError: if no label is saved that the bundle can take, or for what the bundle refuses.
        """
        self.request = {key: value for key, value in request.items() if value != ""}  # as a viewer leaves a field
        return super().__call__(self.request, datastore)

    def _fetch_datalist(self, request: dict[str, Any], datastore: CaseDatastore) -> list[dict[str, Any]]:
        own = getattr(package(self.bundle_path), "SAVED_LABEL", {})  # what the bundle says about labels it has written
        entries = []
        for image_id in datastore.labelled_for(self.name):
            case = datastore.case(self.name, image_id)
            if case is not None and case["image"][0].lower().endswith((".nii", ".nii.gz", ".mgz")):
                file = datastore.get_label_uri(image_id, "final")
                kept = {key: value for key, value in case.items() if key not in ("subset", "label_parts")}
                entries.append({**kept, "label": file, **own})
        if not entries:
            raise ValueError(
                f"no label for {self.name} is saved: save some for NIfTI cases that it takes, with its segment names "
                f'or with the parameter {{"model": "{self.name}"}}, then train.'
            )
        with open(self._datalist(), "w") as out:
            json.dump({"training": entries}, out, indent=2)
        return entries

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        """The bundle's own loader, which refuses weights of another network; the base class's takes what fits."""
        loader = {"_target_": "bundlekit.LoadWeights", "path": model_pytorch, "network": "@network_def"}
        train_handlers[:] = [handler for handler in train_handlers if handler.get("_target_") != loader["_target_"]]
        if pretrained:
            train_handlers.insert(0, loader)

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        config = self.bundle_config.config
        assert isinstance(config, dict)
        for key in (self.const.key_train_dataset_data(), self.const.key_validate_dataset_data()):
            overrides.pop(key, None)
        given = {k: v for k, v in self.request.items() if k in config and k not in _OF_THE_SERVER}
        refuse_expressions(given, "the request")
        overrides.update({**self._recorded(config), **given})
        overrides.update(datalist=self._datalist(), ckpt_dir=os.path.join(self.bundle_path, "models"), overwrite=True)
        overrides["epochs"] = overrides[self.const.key_train_trainer_max_epochs()]
        part = float(self.request.get("val_split", 0.2))
        if 0 < part < 1:
            overrides["train_fraction"] = 1 - part
        return overrides

    def _recorded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Values of train.yaml with which the present weights were trained, and what inference does to their masks."""
        recorded = read_settings(os.path.join(self.bundle_path, "models", "model.pt"))
        ids = {key: value[1:] for key, value in config.get("settings", {}).items() if str(value).startswith("@")}
        fixed = {key: value for key, value in config.get("settings", {}).items() if str(value)[:1] not in ("@", "$")}
        other = [key for key in fixed if recorded.get(key, fixed[key]) != fixed[key]]
        if other:
            how = ", ".join(f"{key} {recorded[key]}" for key in other)
            raise ValueError(f"the weights were trained with {how}, by an overlay: fine-tune them on the command line.")
        chosen = {**recorded, **recorded.get(AFTER_TRAINING, {})}
        kept = {name: chosen[name] for name in handed_on(self.bundle_path) if name in chosen}
        return {ids[key]: value for key, value in recorded.items() if key in ids} | (
            {f"settings::{AFTER_TRAINING}": kept} if kept else {}
        )

    def _datalist(self) -> str:
        return os.path.join(self.bundle_path, "models", "saved_labels.json")
