"""The studies folder as its cases: one entry for each, however many files and folders it has."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import nibabel as nib
import numpy as np
from monailabel.datastore.local import LocalDatastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from bundlekit.errors import BundleError

logger = logging.getLogger(__name__)


class CaseDatastore(LocalDatastore):
    """MONAI Label's own store of a folder, with what the bundles' searches find in it as images.

    An image's id is the case's name, its file the one that a viewer shows (T1ce where a case has four). MONAI Label
    builds a file's path as id and "extension": an image of this store has its path below the folder for that, a label
    its extension as usual. The folder is searched when the server starts and whenever it is asked for a case that it
    does not know.

    Args:
        studies: folder of scans, searched to any depth; nothing is written to it unless `labels` lies in it.
        labels: folder that gets MONAI Label's `labels/` and `datastore_v2.json`.
        searches: name -> `scan_cases` of each bundle.
        settings: name -> arguments of that search.
        modalities: name -> the images that a case of the bundle has.
        class_names: name -> {name of a class: its index}.
        kwargs: further arguments of `LocalDatastore`.
    """

    def __init__(
        self,
        studies: str,
        labels: str,
        searches: Mapping[str, Callable[..., tuple[list[dict[str, Any]], list[Any]]]],
        settings: Mapping[str, Mapping[str, Any]],
        modalities: Mapping[str, Sequence[str]],
        class_names: Mapping[str, Mapping[str, int]],
        **kwargs: Any,
    ) -> None:
        self.searches = searches
        self.modalities = modalities
        self.settings = settings
        self.class_names = class_names
        self.cases: dict[str, dict[str, dict[str, Any]]] = {}  # bundle -> name of the case -> case
        self.findings: list[Any] = []
        self._ids: dict[str, str] = {}  # path below the folder -> name of the case
        here = os.path.realpath(studies) == os.path.realpath(labels)
        super().__init__(labels, images_dir="." if here else os.path.realpath(studies), **kwargs)

    def case(self, bundle: str, image_id: str) -> dict[str, Any] | None:
        """The case as the bundle's search found it; None if it found none of that name."""
        return self.cases.get(bundle, {}).get(image_id)

    def input_file(self, bundle: str, image_id: str) -> str:
        """A file from which the bundle finds the case.

        Raises:
            MONAILabelException: if there is no such case, or none that the bundle can take.
        """
        if image_id not in self._datastore.objects:
            self.refresh()
        case = self.case(bundle, image_id)
        if case is not None:
            return next(file for file in case["image"] if file)
        why = [str(finding) for finding in self.findings if image_id in str(finding)]
        others = [name for name, cases in self.cases.items() if image_id in cases]
        if image_id not in self._datastore.objects:
            there = f"no case {image_id!r} among the {len(self._datastore.objects)} of {self._datastore.image_path()}"
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "\n".join([there, *why]))
        if others:
            message = f"case {image_id!r} is none that {bundle} can take; {', '.join(others)} can."
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "\n".join([message, *why]))
        return self.get_image_uri(image_id)  # uploaded

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As MONAI Label does; a viewer takes the name for a file of its own, so it has no folder."""
        info = super().get_image_info(image_id)
        return {**info, "name": os.path.basename(info["name"])} if "name" in info else info

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As MONAI Label does, with the data set's numbers in place of those that a viewer gave the segments.

        3D Slicer numbers the segments it saves by their order, and sends the name of each beside the file.
        """
        segments = (label_info or {}).get("label_info") or []
        numbers = self._numbers(image_id, segments) if segments else None
        if numbers and _renumber(label_filename, numbers):
            renamed = [{**segment, "idx": numbers.get(int(segment["idx"]), segment["idx"])} for segment in segments]
            label_info = {**label_info, "label_info": renamed}
        return super().save_label(image_id, label_filename, label_tag, label_info)

    def labelled_for(self, bundle: str) -> list[str]:
        """Cases whose saved label is one for this bundle: the same case may be labelled with other classes for another.

        A label says so by `model` among the parameters it was saved with, or by the names of its segments; without
        either it counts where only one of the served bundles can take the case.
        """
        found = []
        for image_id in sorted(self.get_labeled_images()):
            if self.case(bundle, image_id) is None:
                continue
            info = self.get_label_info(image_id, "final")
            used = {str(segment.get("name", "")).lower() for segment in info.get("label_info") or []}
            if info.get("model"):
                own = info["model"] == bundle
            elif used:
                own = used <= {name.lower() for name in self.class_names[bundle]}
            else:
                own = sum(image_id in cases for cases in self.cases.values()) == 1
            if own:
                found.append(image_id)
        return found

    def remove_image(self, image_id: str) -> None:
        """As MONAI Label does for an uploaded image; a case of several files is refused, not left without one."""
        if any(len(cases[image_id]["image"]) > 1 for cases in self.cases.values() if image_id in cases):
            raise MONAILabelException(
                MONAILabelError.INVALID_INPUT, f"{image_id!r} is a case of several files: remove its folder yourself."
            )
        super().remove_image(image_id)

    def _numbers(self, image_id: str, segments: list[dict[str, Any]]) -> dict[int, int]:
        """Number in the file -> number in the data set, where a bundle knows all the names; {} otherwise."""
        used = {str(segment.get("name", "")).lower(): int(segment.get("idx", 0)) for segment in segments}
        for bundle, names in self.class_names.items():
            case = self.case(bundle, image_id)
            known = {name.lower(): index for name, index in names.items()}
            if case is not None and set(used) <= set(known):
                return {number: int(case["label_values"][known[name]]) for name, number in used.items()}
        logger.warning("%s: no bundle has the segments %s; saved with the viewer's numbers", image_id, sorted(used))
        return {}

    # --- what the base class asks for -------------------------------------------------------------------------------

    def _list_files(self, path: str, patterns: Any) -> dict[str, str]:
        if path != self._datastore.image_path():
            return super()._list_files(path, patterns)
        self._search(path)
        return {file: file for file in self._ids}

    def _to_id(self, file: str) -> tuple[str, str]:
        return (self._ids[file], file) if file in self._ids else super()._to_id(file)

    def _filename(self, id: str, ext: str) -> str:
        return id + ext if ext.startswith(".") else ext

    def _search(self, folder: str) -> None:
        own = os.path.realpath(self._datastore.label_path(None)) + os.sep
        shown: dict[str, str] = {}
        self.findings = []
        for name, scan_cases in self.searches.items():
            try:
                cases, findings = scan_cases(folder, labelled=False, **self.settings[name])
            except BundleError as error:  # no case at all; those of another bundle may be there
                cases, findings = [], error.findings
            self.cases[name] = {}
            for case in cases:
                file = _shown(case["image"], self.modalities[name])
                if file and not os.path.realpath(file).startswith(own):
                    self.cases[name][case["case"]] = case
                    shown.setdefault(case["case"], file)
            self.findings += findings
            for finding in findings:
                logger.warning("%s: %s", name, finding)
        self._ids = {os.path.relpath(file, folder): case for case, file in shown.items()}


def _shown(files: list[str], modalities: Sequence[str]) -> str:
    """The file of a case that a viewer shows: T1ce, in which tumours stand out, of four; else the first."""
    if "T1ce" in modalities and len(files) == len(modalities) and files[modalities.index("T1ce")]:
        return files[modalities.index("T1ce")]
    return next((file for file in files if file), "")


def _renumber(file: str, numbers: Mapping[int, int]) -> bool:
    """Give the voxels of a NIfTI label map other numbers, in place; False if it is none, or holds further numbers."""
    if not file.endswith((".nii", ".nii.gz")):
        logger.warning("%s: only NIfTI label maps can be renumbered and trained on", os.path.basename(file))
        return False
    image = nib.load(file)
    voxels = np.asarray(image.dataobj)  # type: ignore[attr-defined]
    if not set(np.unique(voxels).tolist()) <= {0, *numbers}:
        logger.warning("%s: holds numbers without a name; saved as it is", os.path.basename(file))
        return False
    out = np.zeros(voxels.shape, np.uint8)
    for number, value in numbers.items():
        out[voxels == number] = value
    nib.save(nib.Nifti1Image(out, image.affine), file)  # type: ignore[attr-defined]
    return True
