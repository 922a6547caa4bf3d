"""Fine-tuning of a bundle on the labels saved in the server."""

from __future__ import annotations

import json
import logging
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import create_workflow
from monailabel.tasks.train.bundle import BundleTrainTask

from bundlekit.cases.datalist import TRAINED_ON, trained_cases, write_trained_cases
from bundlekit.errors import BundleError
from bundlekit.files import write_content
from bundlekit.training.beginning import RequireBetter
from bundlekit.training.lock import clear_run, unlock_run
from bundlekit.weights.aside import keep_aside
from bundlekit.weights.settings import AFTER_TRAINING, SETTINGS, of_second_network, read_settings, record_setting
from lib.bundles import handed_on, package
from lib.checks import training_settings
from lib.datastore import CaseDatastore

logger = logging.getLogger(__name__)
_FREE = ("modality_dropout",)  # of recorded settings: those that inference does not go by
# one process on one GPU: it is a handful of cases. No address or file of an experiment's record from a request
_FIXED = {
    "multi_gpu": False,
    "force_multi_gpu": False,
    "tracking": "None",
    "run_id": "run",
    "model_filename": "model.pt",
}


class CaseTrain(BundleTrainTask):
    """`BundleTrainTask` that leaves cases, split and checks to the bundle's own config.

    The saved labels ("final") go to it as a datalist; network and preprocessing are those of the weights it starts from
    (`models/settings.json`). A request may set what a user turns in `train.yaml` too, e.g. `{"max_epochs": 5,
    "learning_rate": 1e-5}`. The training has a folder of its own, `models/training`; its best weights replace those of
    the server's copy of the bundle if they score better on the validation part, by the bundle's key metric. Those from
    before are kept in `models/earlier`.

    Args:
        name: of the bundle, and of its package.
        path: folder of the bundle.
        conf: the server's `--conf`.
    """

    def __init__(self, name: str, path: str, conf: dict[str, str]) -> None:
        super().__init__(path, conf, load_strict=True)
        self.name = name
        self.request: dict[str, Any] = {}
        self.models = Path(path, "models")
        self.outcome: dict[str, Any] = {}

    def config(self) -> dict[str, Any]:
        """What a viewer offers to set; weights to start from are those that the server infers with."""
        offered = super().config().items()
        return {key: value for key, value in offered if key not in _FIXED and not key.startswith("tracking")}

    def __call__(self, request: dict[str, Any], datastore: CaseDatastore) -> dict[str, Any]:
        """Train.

        Returns:
            `kept`: "before" or "after", which weights are served now; `metric`, and its values `before` and `after`,
            None where there is none.

        Raises:
            ValueError: if no label is saved that the bundle can take, or for what the bundle refuses.
        """
        self.request = self.checked(request)  # before anything is looked for
        super().__call__(self.request, datastore)
        return self.outcome

    def checked(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """A request without the fields that were left empty, and with what is not for it to say.

        Raises:
            BundleError: for what cannot be set, or a value that a setting cannot be.
        """
        asked = {key: value for key, value in request.items() if value != ""} | _FIXED
        if "epochs" in asked:  # the name in train.yaml
            asked.setdefault("max_epochs", asked["epochs"])
        epochs, part = asked.get("max_epochs", 50), asked.get("val_split", 0.2)
        if isinstance(epochs, bool) or not isinstance(epochs, int) or epochs < 1:
            raise BundleError(f"max_epochs is {epochs!r}; expected a whole number from 1 on.")
        if isinstance(part, bool) or not isinstance(part, (int, float)) or part >= 1:
            raise BundleError(f"val_split is {part!r}; expected a number below 1, e.g. 0.2.")
        assert isinstance(self.bundle_config.config, dict)
        chosen = training_settings(asked, self.bundle_config.config)
        config = self.bundle_config.config
        own = {str(id_)[1:] for id_ in config.get("settings", {}).values() if str(id_)[:1] == "@"}
        recorded = {key: config[key] for key in own if key in config} | self._recorded(config)
        other = [key for key in chosen if key in recorded and key not in _FREE and chosen[key] != recorded[key]]
        if other:  # the server infers as these weights need it
            now = ", ".join(f"{key} {recorded[key]}" for key in other)
            raise BundleError(
                f"the request: {', '.join(other)}: the weights that are served have {now}, which a fine-tuning keeps. "
                "Train others on the command line, and serve them by --weights."
            )
        return asked

    def run_single_gpu(self, request: dict[str, Any], overrides: dict[str, Any]) -> None:
        """Train in a folder of its own, and take over what is better; `BundleError` if a training runs there."""
        clear_run(overrides["ckpt_dir"])  # of an earlier training, whose model.pt is not this one's
        try:
            self._run(Path(overrides["ckpt_dir"]), overrides)
        finally:
            unlock_run(overrides["ckpt_dir"])  # the server's process goes on after a training that failed

    def _run(self, new: Path, overrides: dict[str, Any]) -> None:
        files = {"config_file": self.bundle_config_path, "meta_file": self.bundle_metadata_path}
        workflow = create_workflow(**files, init_id=None, run_id="run", final_id=None, **overrides)
        workflow.run()
        workflow.finalize()
        handlers = workflow.parser.get_parsed_content("train::handlers")
        (scores,) = (handler for handler in handlers if isinstance(handler, RequireBetter))
        better = (new / "model.pt").is_file()
        self.outcome = {
            "kept": "after" if better else "before",
            "metric": scores.validator.state.key_metric_name,
            "before": scores.before if math.isfinite(scores.before) else None,  # JSON has no NaN
            "after": scores.after if scores.after is not None and math.isfinite(scores.after) else None,
        }
        served = f"those from before stay (the last network of the training is {new / 'last.pt'})"
        if better:
            earlier = keep_aside(self.models, ("model.pt", SETTINGS, TRAINED_ON))
            kept = of_second_network(self.models / "model.pt")
            settings = (new / SETTINGS).read_bytes()
            write_content(self.models / SETTINGS, settings)
            for name, value in kept.items():  # the second network stays beside the one that was trained on
                record_setting(self.models / "model.pt", name, value)
            write_trained_cases(trained_cases(new), self.models)  # an evaluation of these weights knows them
            os.replace(new / "model.pt", self.models / "model.pt")
            served = f"the new ones (those from before: --weights {self.name}={earlier} takes them again)"
        after = "not validated" if scores.after is None else f"{scores.after:.4f}"
        logger.info(
            "%s: %s of the validation part %.4f before, %s after; weights that are served now: %s",
            self.name,
            self.outcome["metric"],
            scores.before,
            after,
            served,
        )

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
        text = json.dumps({"training": entries}, indent=2)
        write_content(Path(self._datalist()), text)
        return entries

    def _load_checkpoint(self, model_pytorch: str, pretrained: bool, train_handlers: list[dict[str, Any]]) -> None:
        """The bundle's own loader, which refuses weights of another network; the base class's takes what fits."""
        loader = {"_target_": "bundlekit.LoadWeights", "path": model_pytorch, "network": "@network_def"}
        first = {
            "_target_": "bundlekit.RequireBetter",
            "validator": "@validate::evaluator",
            "network": "@network_def",
            "weights": model_pytorch,
        }
        record = {"_target_": "bundlekit.RecordPretraining", "pretrained": model_pytorch, "ckpt_dir": "@ckpt_dir"}
        own = (loader["_target_"], first["_target_"], record["_target_"])
        others = [handler for handler in train_handlers if handler.get("_target_") not in own]
        before, behind = ([loader], [record]) if pretrained else ([], [])
        train_handlers[:] = [*before, first, *others, *behind]

    def _update_overrides(self, overrides: dict[str, Any]) -> dict[str, Any]:
        config = self.bundle_config.config
        assert isinstance(config, dict)
        for key in (self.const.key_train_dataset_data(), self.const.key_validate_dataset_data()):
            overrides.pop(key, None)
        overrides.update({**self._recorded(config), **training_settings(self.request, config)})
        overrides.update(datalist=self._datalist(), ckpt_dir=str(self.models / "training"), overwrite=True)
        overrides["epochs"] = overrides[self.const.key_train_trainer_max_epochs()]
        part = float(self.request.get("val_split", 0.2))
        if 0 < part < 1 and ("val_split" in self.request or "train_fraction" not in self.request):
            overrides["train_fraction"] = 1 - part
        return overrides

    def _recorded(self, config: dict[str, Any]) -> dict[str, Any]:
        """Values of train.yaml with which the present weights were trained, and what inference does to their masks."""
        recorded = read_settings(self.models / "model.pt")
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
        return str(self.models / "saved_labels.json")
