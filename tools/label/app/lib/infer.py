"""Inference of a bundle: MONAI Label's own, with the label map that the bundle itself would write."""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.utils import convert_to_numpy
from monailabel.tasks.infer.bundle import BundleInferTask

from bundlekit.cases.served import load_served
from bundlekit.errors import BundleError
from bundlekit.images.writing import on_grid_of
from bundlekit.weights.loading import load_weights, read_checkpoint
from bundlekit.weights.settings import companions
from lib.bundles import case_settings, find_cases, tell_missing

# of a request; and what the bundle's search for cases can be told
_KNOWN = {
    "model", "image", "case_file", "case_values", "device", "description", "logging", "save_label", "label_tag",
    "model_filename",
    "result_extension", "result_dtype", "result_compress",
}  # fmt: skip


class CaseInfer(BundleInferTask):
    """`BundleInferTask` that answers with the data set's own label values on the grid of the case, uint8.

    `label_names` of the answer are names and values in the order of the values; 3D Slicer takes the k-th of them for
    value k, so that values the data set skips are named too. Weights of another network are refused, not half loaded.

    Args:
        name: of the bundle, and of its package.
        path: folder of the bundle.
        conf: the server's `--conf`.
        class_names: name of each class the bundle writes, with its index.
    """

    def __init__(self, name: str, path: str, conf: dict[str, str], class_names: dict[str, int]) -> None:
        super().__init__(path, conf, add_post_restore=False, load_strict=True)
        self.name = name
        self.labels = class_names
        self.settings = case_settings(path)
        if self.is_valid():  # the first is what a request means that names none; last.pt is for resuming a training
            known = ("model.pt", "last.pt", *companions(self.get_path()))  # a second network is none to choose
            others = [file for file in self._config["model_filename"] if file not in known]
            self._config["model_filename"] = ["model.pt", *others]
            self._check_weights()

    def __call__(self, request: dict[str, Any], callbacks: Any = None) -> tuple[Any, dict[str, Any]]:
        """Segment the case of `request["image"]`, a path; `case_file`, if there, is the one that the bundle prefers.

        `case_values`, if there, are the label values that the search of all studies has found for the case.
        """
        request = self._known(request)
        request["image"] = request.pop("case_file", None) or request["image"]
        file, result = super().__call__(request, callbacks)
        values = result.pop("label_values", None)
        if values is not None and "label_names" in result:
            result["label_names"] = _named(self.labels, values)
        return file, result

    def _known(self, request: dict[str, Any]) -> dict[str, Any]:
        """What this task goes by: of all that a request may say, names of files most of all, nothing else reaches it.

        Raises:
            BundleError: for weights that are not offered, or an extension that is none.
        """
        search = set(inspect.signature(find_cases(self.bundle_path)).parameters) - {"dataset_dir", "datalist"}
        known = {key: value for key, value in request.items() if key in _KNOWN or key in search}
        file, offered = known.get("model_filename", "model.pt"), self._config["model_filename"]
        if file not in (*offered, offered):
            raise BundleError(f"model_filename is {file!r}; expected one of {', '.join(offered)}.")
        extension = known.get("result_extension") or ".nii.gz"
        if not re.fullmatch(r"(\.\w{1,5}){1,2}", str(extension), re.ASCII):
            raise BundleError(f"result_extension is {extension!r}; expected e.g. .nii.gz or .nrrd")
        if str(known.get("logging", "INFO")).upper() not in logging.getLevelNamesMapping():
            raise BundleError(f"logging is {known['logging']!r}; expected e.g. INFO or WARNING")
        return known

    def _check_weights(self) -> None:
        """Refuse weights of another network now, in the bundle's words, and not at the first request."""
        file = self.get_path()
        load_weights(self.network, file)
        for second in companions(file):
            read_checkpoint(str(Path(file).with_name(second)))

    def pre_transforms(self, data: Any = None) -> list[Callable]:
        """The bundle's own, of which the first decodes the case that a path belongs to."""
        load, *others = super().pre_transforms(data)
        search = find_cases(self.bundle_path)

        def load_told(case: dict[str, Any]) -> dict[Hashable, Any]:
            tell_missing(self.bundle_path, case)
            return load(case)

        def load_named(data: Any) -> dict[Hashable, Any]:
            found = load_served(load_told, search, {**self.settings, **data})
            # by all files of the studies, not by this one alone, unless the request says it
            told = data.get("case_values") if data.get("et_label") is None else None
            return {**found, "label_values": torch.tensor([int(v) for v in told])} if told else found

        return [load_named, *others]

    def writer(self, data: dict[str, Any], extension: Any = None, dtype: Any = None) -> tuple[Any, Any]:
        """Write the label map: NIfTI with the header of the case's first image, or what else was asked for."""
        values = [int(value) for value in data["label_values"]]
        pred = data[self.output_label_key]
        mask = np.asarray(values, np.uint8)[convert_to_numpy(pred)[0].astype(np.uint8)]
        if data["source"].lower().endswith((".nii", ".nii.gz", ".mgz")):
            image = on_grid_of(data["source"], mask)
        else:
            image = nib.Nifti1Image(mask, convert_to_numpy(pred.affine))
            image.set_qform(image.affine, code=1)
            image.set_sform(image.affine, code=1)
            image.header.set_xyzt_units("mm")
        extension = extension or data.get("result_extension") or ".nii.gz"
        result = {"label_values": values}
        if extension not in (".nii", ".nii.gz"):
            mask_on_grid = MetaTensor(torch.from_numpy(mask), affine=torch.from_numpy(image.affine))
            file, more = super().writer({**data, self.output_label_key: mask_on_grid}, extension, "uint8")
            return file, {**more, **result}
        with tempfile.NamedTemporaryFile(suffix=extension, delete=False) as out:
            nib.save(image, out.name)
        return out.name, result


def _named(labels: dict[str, int], values: list[int]) -> dict[str, int]:
    """Name -> value in the order of the values, from 1 to the largest without a gap."""
    names = {values[index]: name for name, index in labels.items()}
    return {names.get(value, f"{value} (not used)"): value for value in range(1, max(names) + 1)}
