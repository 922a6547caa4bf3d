"""The studies folder as its cases: one entry for each, however many files and folders it has."""

from __future__ import annotations

import filecmp
import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
from filelock import FileLock
from monailabel.datastore.local import DataModel, ImageLabelModel, LocalDatastore
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException

from bundlekit.cases.folders import CANNOT_BE_LISTED, leaving_out
from bundlekit.errors import BundleError
from bundlekit.expressions import refuse_expressions
from bundlekit.files import write_whole
from bundlekit.images.nifti import without_rounding
from lib.checks import NIFTI, check_image, check_label, inside, listed, plain_name

logger = logging.getLogger(__name__)


class CaseDatastore(LocalDatastore):
    """MONAI Label's own store of a folder, with what the bundles' searches find in it as images.

    An image's id is the case's name, its file the one that a viewer shows (T1ce where a case has four). MONAI Label
    builds a file's path as id and "extension": an image of this store has its path below the folder for that, a label
    its extension as usual. The folder is searched when the server starts and whenever it is asked for a case that it
    does not know. Whatever a request says, no scan of the studies is replaced or removed, and nothing is written but
    labels on a scan's grid and new images, both below `labels`.

    Args:
        studies: folder of scans, searched to any depth; nothing is written to it unless `labels` lies in it.
        labels: folder that gets MONAI Label's `labels/` and `datastore_v2.json`, and `.uploads/` with images that
            clients send.
        searches: name -> `scan_cases` of each bundle.
        settings: name -> arguments of that search.
        modalities: name -> the images that a case of the bundle has.
        class_names: name -> {name of a class: its index}.
        trained_here: names of the bundles that labels from a viewer train.
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
        trained_here: Sequence[str],
        **kwargs: Any,
    ) -> None:
        self.searches = searches
        self.modalities = modalities
        self.settings = settings
        self.class_names = class_names
        self.trained_here = trained_here
        self.cases: dict[str, dict[str, dict[str, Any]]] = {}  # bundle -> name of the case -> case
        self.findings: list[Any] = []
        self._ids: dict[str, str] = {}  # path below the folder -> name of the case
        self.uploads = os.path.join(os.path.realpath(labels), ".uploads")  # hidden: no search for cases goes there
        self._searched = False
        here = os.path.realpath(studies) == os.path.realpath(labels)
        self._own_images_dir = "." if here else os.path.realpath(studies)
        super().__init__(labels, images_dir=self._own_images_dir, **kwargs)
        if self._auto_reload:
            self._handler.on_moved = self._on_moved

    def case(self, bundle: str, image_id: str) -> dict[str, Any] | None:
        """The case as the bundle's search found it; None if it found none of that name."""
        return self.cases.get(bundle, {}).get(image_id)

    def input_file(self, bundle: str, image_id: str) -> str:
        """A file from which the bundle finds the case.

        Raises:
            MONAILabelException: if there is no such case, or none that the bundle can take.
        """
        self._require(image_id)
        case = self.case(bundle, image_id)
        if case is not None:
            return next(file for file in case["image"] if file)
        others = [name for name, cases in self.cases.items() if image_id in cases]
        if others:
            message = (
                f"case {image_id!r} is none that {bundle} can take; {', '.join(others)} can. "
                f"For {bundle} there are {listed(self.cases.get(bundle, {}))}."
            )
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "\n".join([message, *self._why(image_id)]))
        return self.get_image_uri(image_id)  # uploaded

    def _require(self, image_id: str) -> None:
        """Look for a case that is not known, and say which are there if there is none of that name."""
        if image_id not in self._datastore.objects:
            self.refresh()
        if image_id not in self._datastore.objects:
            there = (
                f"no case {image_id!r} in {self._datastore.image_path()}; there are {listed(self._datastore.objects)}."
            )
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "\n".join([there, *self._why(image_id)]))

    def _why(self, image_id: str) -> list[str]:
        """What the searches found wrong about a case."""
        return [str(finding) for finding in self.findings if image_id in str(finding)]

    def get_image_uri(self, image_id: str) -> str:
        """As MONAI Label does; for a case that is not there it says which are."""
        self._require(image_id)
        return super().get_image_uri(image_id)

    def get_image_info(self, image_id: str) -> dict[str, Any]:
        """As MONAI Label does; a viewer takes the name for a file of its own, so it has no folder."""
        info = super().get_image_info(image_id)
        return {**info, "name": os.path.basename(info["name"])} if "name" in info else info

    def save_label(self, image_id: str, label_filename: str, label_tag: str, label_info: dict[str, Any]) -> str:
        """As MONAI Label does, with the data set's numbers in place of those that a viewer gave the segments.

        3D Slicer numbers the segments it saves by their order, and sends the name of each beside the file; an empty one
        for every class of every bundle is among them.

        Raises:
            MONAILabelException: if there is no such case.
            BundleError: for a tag that is a path, expressions, a file that is no label map on the case's grid, or
                segments that no bundle has.
        """
        tag, name = plain_name(getattr(label_tag, "value", label_tag), "tag"), plain_name(image_id, "image")
        label_info = _plain_info(label_info)
        self._require(name)
        cases = [cases[name]["image"] for cases in self.cases.values() if name in cases]
        check_label(label_filename, [next(filter(None, c)) for c in cases] or [self.get_image_uri(name)], name)
        if label_info.get("label_info"):
            segments = _drawn(label_filename, label_info["label_info"])
            numbers = self._numbers(name, segments)
            _renumber(label_filename, numbers)
            renamed = [{**segment, "idx": numbers[int(segment["idx"])]} for segment in segments]
            label_info = {**label_info, "label_info": renamed}
        extension = next(e for e in reversed(NIFTI) if label_filename.endswith(e))
        file = Path(self._datastore.label_path(tag), name + extension)
        with FileLock(self._lock_file):
            write_whole(file, lambda out: out.write(Path(label_filename).read_bytes()))
            for other in set(NIFTI) - {extension}:  # an older one, which would come back when this one is removed
                file.with_name(name + other).unlink(missing_ok=True)
            info = {**label_info, "ts": int(time.time()), "name": file.name}
            self._datastore.objects[name].labels[tag] = DataModel(info=info, ext=extension)
            self._update_datastore_file(lock=False)
        return name

    def remove_label(self, label_id: str, label_tag: str) -> None:
        """As MONAI Label does.

        Raises:
            MONAILabelException: if there is no such label.
        """
        file = self.get_label_uri(label_id, label_tag)
        if not file or inside(file, [self._datastore.label_path(None)]) is None:
            message = f"no label {label_tag!r} of {label_id!r}. Labelled cases: {listed(self.get_labeled_images())}."
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, message)
        super().remove_label(label_id, label_tag)

    def add_image(self, image_id: str, image_filename: str, image_info: dict[str, Any]) -> str:
        """Take an image that a client sends; it is kept beside the labels, never among the studies.

        Raises:
            BundleError: for a name that is a path or that a case has, expressions, or what is no NIfTI volume.
        """
        name, image_info = plain_name(image_id, "image"), _plain_info(image_info)
        if name in self._datastore.objects:
            there = self.get_image_uri(name)
            if self._is_upload(there) and filecmp.cmp(there, image_filename, shallow=False):  # a viewer sends it again
                return name
            raise BundleError(f"there is a case {name!r} already, and scans are not replaced; send it by another name.")
        check_image(image_filename, name)
        extension = next(e for e in reversed(NIFTI) if image_filename.endswith(e))
        file = Path(self.uploads, name + extension)
        with FileLock(self._lock_file):
            write_whole(file, lambda out: out.write(Path(image_filename).read_bytes()))
            info = {**image_info, "ts": int(time.time()), "name": file.name}
            self._datastore.objects[name] = ImageLabelModel(image=DataModel(info=info, ext=str(file)))
            self._update_datastore_file(lock=False)
        return name

    def remove_image(self, image_id: str) -> None:
        """Remove an image that a client has sent, with its labels.

        Raises:
            MONAILabelException: if there is no such case.
            BundleError: for a scan of the studies.
        """
        file = self.get_image_uri(image_id)
        if not self._is_upload(file):
            raise BundleError(
                f"{image_id!r} is a scan of the studies, which the server leaves alone: remove it yourself."
            )
        for tag in list(self._datastore.objects[image_id].labels):
            self.remove_label(image_id, tag)
        Path(file).unlink(missing_ok=True)
        self._datastore.objects.pop(image_id, None)
        self._update_datastore_file()

    def update_image_info(self, image_id: str, info: dict[str, Any]) -> None:
        """As MONAI Label does, but for expressions."""
        self._require(image_id)
        super().update_image_info(image_id, _plain_info(info))

    def update_label_info(self, label_id: str, label_tag: str, info: dict[str, Any]) -> None:
        """As MONAI Label does, but for expressions."""
        super().update_label_info(label_id, label_tag, _plain_info(info))

    def get_dataset_archive(self, limit_cases: int | None) -> str:
        """As MONAI Label does.

        Raises:
            MONAILabelException: if no label is saved.
        """
        if not self.datalist():
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, "no label is saved yet: there is nothing to pack.")
        return super().get_dataset_archive(limit_cases)

    def labelled_for(self, bundle: str) -> list[str]:
        """Cases whose saved label is one for this bundle: the same case may be labelled with other classes for another.

        A label says so by `model` among the parameters it was saved with, or by the names of its segments; without
        either it counts where only one of the served bundles can take the case.
        """
        return [image_id for image_id in sorted(self.get_labeled_images()) if self.is_for(bundle, image_id)]

    def is_for(self, bundle: str, image_id: str) -> bool:
        """Whether the saved label of a case is one for this bundle, see `labelled_for`."""
        if self.case(bundle, image_id) is None:
            return False
        told = self.says(bundle, image_id)
        return sum(image_id in self.cases[name] for name in self.trained_here) == 1 if told is None else told

    def says(self, bundle: str, image_id: str) -> bool | None:
        """Whether a saved label says that it is one for this bundle; None if it says nothing."""
        info = self.get_label_info(image_id, "final")
        used = {str(segment.get("name", "")).lower() for segment in info.get("label_info") or []}
        if info.get("model"):
            return bool(info["model"] == bundle)
        if used:
            return used <= {name.lower() for name in self.class_names[bundle]}
        return None

    def _numbers(self, image_id: str, segments: list[dict[str, Any]]) -> dict[int, int]:
        """Number in the file -> number in the data set, by the bundle that knows all the names.

        Raises:
            BundleError: if there is none, or a segment has no number.
        """
        used = {int(segment["idx"]): str(segment.get("name", "")).lower() for segment in segments}
        takes = []
        for bundle, names in self.class_names.items():
            case = self.case(bundle, image_id)
            if case is None:
                continue
            known = {name.lower(): index for name, index in names.items()}
            if set(used.values()) <= set(known):
                return {number: int(case["label_values"][known[name]]) for number, name in used.items()}
            takes.append(_told(bundle, names))
        if not takes:  # an image that a client has sent: no search knows it
            for bundle, names in self.class_names.items():
                known = {name.lower(): index for name, index in names.items()}
                if set(used.values()) <= set(known):
                    return {number: known[name] for number, name in used.items()}
                takes.append(_told(bundle, names))
        drawn = ", ".join(sorted(set(used.values())))
        raise BundleError(
            f"{image_id}: nothing is saved, since no bundle has all of the segments {drawn}. Name "
            f"them, and empty or delete the others, as one of these has them: {'; '.join(takes)}."
        )

    def _is_upload(self, file: str) -> bool:
        return inside(file, [self.uploads]) is not None

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

    def _update_datastore_file(self, lock: bool = True) -> None:
        """As MONAI Label does, but whole or not at all: where a process is killed, the list of before is there."""
        with FileLock(self._lock_file) if lock else nullcontext():
            text = json.dumps(self._datastore.model_dump(exclude={"base_path"}), indent=2, default=str)
            write_whole(self._datastore_config_path, lambda out: out.write(text.encode()))
            self._config_ts = os.stat(self._datastore_config_path).st_mtime

    def _init_from_datastore_file(self, *args: Any, **kwargs: Any) -> None:
        """As MONAI Label does, but the studies are those of this start: the list names the folder of an earlier one."""
        super()._init_from_datastore_file(*args, **kwargs)
        self._datastore.images_dir = self._own_images_dir

    def _on_moved(self, event: Any) -> None:
        """Read the list again where another process has put one in its place."""
        if event.dest_path == self._datastore_config_path:
            self._init_from_datastore_file()

    def _remove_non_existing(self) -> int:
        """As MONAI Label does, and what no search finds any more, unless it has a label or was sent by a client."""
        removed = super()._remove_non_existing()
        known = set(self._ids.values())
        searched, self._searched = self._searched, False  # what a search before this one found may be gone
        for image_id, entry in list(self._datastore.objects.items()) if searched else ():
            file = self._filename(image_id, entry.image.ext)
            if image_id not in known and not entry.labels and not self._is_upload(file):
                del self._datastore.objects[image_id]
                removed += 1
        return removed

    def _search(self, folder: str) -> None:
        labels = os.path.realpath(self._datastore.label_path(None))  # whose files can have the names of scans
        own = labels + os.sep
        self.findings, whole = [], True
        for name, scan_cases in self.searches.items():
            try:
                with leaving_out(labels):
                    cases, findings = scan_cases(folder, labelled=False, **self.settings[name])
            except BundleError as error:  # no case at all; those of another bundle may be there
                cases, findings = [], error.findings
                whole = whole and not any(CANNOT_BE_LISTED in finding.found for finding in findings)
            self.cases[name] = {}
            for case in cases:
                file = _shown(case["image"], self.modalities[name])
                if file and not os.path.realpath(file).startswith(own):
                    self.cases[name][case["case"]] = case
            self.findings += findings
            for finding in findings:
                logger.warning("%s: %s", name, finding)
        shown = self._joined()
        self._ids = {os.path.relpath(file, folder): case for case, file in shown.items()}
        self._searched = whole

    def _tell_apart(self) -> None:
        """A case of a bundle that takes any scan is named by its file where another's of that name has other files."""
        for bundle, cases in self.cases.items():
            if bundle in self.trained_here:
                continue
            for name, case in list(cases.items()):
                others = [cases[name]["image"] for one, cases in self.cases.items() if one != bundle and name in cases]
                if any(case["image"][0] not in files for files in others):
                    del cases[name]
                    own = os.path.basename(case["image"][0]).removesuffix(".gz")
                    cases[own] = {**case, "case": own}

    def _joined(self) -> dict[str, str]:
        """Name of each case with the file that is shown of it, after one scan has one name for all bundles.

        A bundle that takes any scan names it after its file, and finds each modality of another bundle's case. Of the
        names that a file has, that of the case with the most files stays, then the shortest; of such a case the bundle
        takes the file that is shown.
        """
        self._tell_apart()
        names: dict[str, tuple[int, int, str]] = {}
        for cases in self.cases.values():
            for name, case in cases.items():
                for file in filter(None, case["image"]):
                    rank = (-len(case["image"]), len(name), name)
                    names[file] = min(names.get(file, rank), rank)
        shown: dict[str, str] = {}
        for bundle, cases in self.cases.items():
            for name, case in cases.items():
                file = _shown(case["image"], self.modalities[bundle])
                if len(case["image"]) > 1 or names[file][2] == name:
                    shown.setdefault(name, file)
        for cases in self.cases.values():
            for name, case in list(cases.items()):
                (file, *_), kept = case["image"], names[next(filter(None, case["image"]))][2]
                if len(case["image"]) == 1 and kept != name:
                    del cases[name]
                    if shown.get(kept) == file and kept not in cases:
                        cases[kept] = {**case, "case": kept}
        return shown


def _told(bundle: str, names: Mapping[str, int]) -> str:
    return f"{bundle}: {', '.join(name for name, index in names.items() if index)}"


def _plain_info(info: Any) -> dict[str, Any]:
    """What a client says about an image or label, without expressions."""
    if not isinstance(info or {}, dict):
        raise BundleError(f"params: a {type(info).__name__}; expected an object with names and values.")
    refuse_expressions(info, "params")
    return dict(info or {})


def _shown(files: list[str], modalities: Sequence[str]) -> str:
    """The file of a case that a viewer shows: T1ce, in which tumours stand out, of four; else the first."""
    if "T1ce" in modalities and len(files) == len(modalities) and files[modalities.index("T1ce")]:
        return files[modalities.index("T1ce")]
    return next((file for file in files if file), "")


def _drawn(file: str, segments: Any) -> list[dict[str, Any]]:
    """Those of a viewer's segments that have a voxel.

    Raises:
        BundleError: if a segment is no object with a number, or a voxel has one that is no segment's.
    """
    voxels = set(np.unique(without_rounding(np.asarray(nib.load(file).dataobj))).tolist()) - {0}  # type: ignore[attr-defined]
    try:
        drawn = [dict(segment) for segment in segments if int(segment["idx"]) in voxels]
    except (TypeError, ValueError, KeyError) as error:
        expected = '[{"name": ..., "idx": number in the file}]'
        raise BundleError(f"label_info: {segments!r}; expected {expected}.") from error
    if unnamed := voxels - {int(segment["idx"]) for segment in drawn}:
        raise BundleError(f"nothing is saved: {listed(map(str, unnamed))} in the file are numbers of no segment sent.")
    return drawn


def _renumber(file: str, numbers: Mapping[int, int]) -> None:
    """Give the voxels of a NIfTI label map other numbers, in place."""
    image = nib.load(file)
    voxels = without_rounding(np.asarray(image.dataobj))  # type: ignore[attr-defined]
    out = np.zeros(voxels.shape, np.uint8)
    for number, value in numbers.items():
        out[voxels == number] = value
    nib.save(nib.Nifti1Image(out, image.affine), file)  # type: ignore[attr-defined]
