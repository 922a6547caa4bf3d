"""A whole case, from its files to the written mask: the Model Zoo's way, nnU-Net's, and a bundle's own."""

from __future__ import annotations

import contextlib
import importlib.util
import multiprocessing
import os
import resource
import statistics
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import DataLoader, Dataset, decollate_batch
from monai.inferers import SlidingWindowInferer
from monai.transforms import (
    AsDiscrete,
    Compose,
    ConcatItemsd,
    EnsureChannelFirstd,
    LoadImaged,
    NormalizeIntensityd,
    SaveImage,
)
from tqdm import tqdm

from bundlekit.brats import find_cases
from bundlekit.brats.regions import REGIONS
from bundlekit.errors import BundleError
from bundlekit.virtual.cohorts import whole_number
from tools.bundles import find_cases_of, parse

_ZOO = "Model Zoo: whole volume, PyTorch f32"
_NNUNET = "nnU-Net's predictor, PyTorch f32"
_OWN = {
    "PyTorch f32": {"runtime": "torch", "precision": "f32"},
    "OpenVINO f32": {"runtime": "openvino", "precision": "f32"},
    "auto": {"runtime": "auto", "precision": "auto"},
}


def case(
    dataset_dir: str,
    bundle: str = "brats_resunet",
    index: int = 0,
    overlap: float = 0.5,
    repeats: int = 3,
    threads: int = 2,
) -> None:
    """Seconds from a case's files to its written mask, peak memory and Dice, of the ways to get there.

    Of each way there is one run a round, in a process of its own, the ways in turn; the median of the rounds is shown.
    Memory is that of the process which computes; the bundle's own ways decode in another one beside it.
    The seconds begin when MONAI is imported and the files lie in the system's cache, and hold reading the weights,
    decoding, the network, and writing. The first round of a bundle's own ways converts the network for OpenVINO, and
    stands in a column of its own. Ways:

    - the Model Zoo's (four files with BraTS's labels only): `LoadImaged`, `NormalizeIntensityd`, windows over the whole
      volume in PyTorch, `SaveImage`;
    - nnU-Net's own predictor with the same network, without its mirroring, on the brain as it crops it, if `nnunetv2`
      is installed;
    - the bundle's `inference.yaml` in PyTorch, in OpenVINO, and as it comes (`auto`): with all that it ships, so
      the brain bundles with their second networks, which the ways above do without.

    Args:
        dataset_dir: folder of cases. Where a glioma or a metastasis has a label, masks are scored by it too.
        bundle: name of a bundle that ships weights.
        index: which case of the folder, from 0.
        overlap: of neighbouring windows, 0 to below 1.
        repeats: rounds, 1 or more.
        threads: of PyTorch and OpenVINO.

    Raises:
        ValueError: if there is no such case.
    """
    index = whole_number("index", index, 0)
    cases = find_cases_of(bundle)(dataset_dir=dataset_dir, labelled=False)
    if index >= len(cases):
        raise ValueError(f"index is {index}, but {dataset_dir} holds {len(cases)} case(s), counted from 0.")
    brats = _takes_brats(bundle) and len(cases[index]["image"]) == 4  # not Decathlon's one file, of other numbers
    ways = [*([_ZOO, _NNUNET] if brats else []), *_OWN]
    if _NNUNET in ways and importlib.util.find_spec("nnunetv2") is None:
        ways.remove(_NNUNET)
        print("nnunetv2 is not installed: its predictor is left out")
    reference = None
    if brats:  # whose labels are read as they are
        with contextlib.suppress(BundleError):
            reference = _regions(bundle, find_cases_of(bundle)(dataset_dir=dataset_dir, labelled=True)[index]["label"])
    seconds: dict[str, list[float]] = {way: [] for way in ways}
    memory: dict[str, float] = {}
    masks: dict[str, dict[str, np.ndarray]] = {}
    with tempfile.TemporaryDirectory() as folder:
        context, usual = multiprocessing.get_context("spawn"), multiprocessing.get_start_method()
        for number, way in tqdm([(n, way) for n in range(repeats) for way in ways], "ways", unit="run"):
            job = (way, bundle, dataset_dir, index, overlap, threads, str(Path(folder, f"{number} {way}")))
            with ProcessPoolExecutor(1, context, _prepare, (folder, usual)) as pool:
                took, memory[way], mask = pool.submit(_run, *job).result()
            seconds[way].append(took)
            masks[way] = _regions(bundle, mask)
    first = ways[0]
    print(f"{bundle}, {threads} threads, overlap {overlap}, {repeats} rounds, {Path(dataset_dir).name}")
    heads = ("seconds", "first", "ratio", "GiB peak", f"Dice against {first}", "Dice against the label")
    print(f"{'':<40}" + "  ".join(heads))
    base = statistics.median(seconds[first])
    for way in ways:
        median = statistics.median(seconds[way])
        agreement, score = _dice(masks[way], masks[first]), _dice(masks[way], reference)
        print(
            f"{way:<40}{median:7.2f}  {seconds[way][0]:5.2f}  {base / median:5.1f}  {memory[way]:8.2f}  "
            f"{agreement:<{len(heads[4])}}  {score}",
            flush=True,
        )


def _prepare(folder: str, start_method: str) -> None:
    """Converted networks lie in a folder of the benchmark's, and loaders start as they do in a user's run."""
    os.environ["XDG_CACHE_HOME"] = folder
    multiprocessing.set_start_method(start_method, force=True)


def _run(
    way: str, bundle: str, dataset_dir: str, index: int, overlap: float, threads: int, out: str
) -> tuple[float, float, str]:
    """Seconds, peak GiB and the mask's file of one way."""
    torch.set_num_threads(threads)
    found = find_cases_of(bundle)(dataset_dir=dataset_dir, labelled=False)[index]
    for file in _files(found):
        Path(file).read_bytes()
    start = time.perf_counter()
    if way in _OWN:
        _own(bundle, dataset_dir, index, {"overlap": overlap, "output_dir": out, **_OWN[way]})
    else:
        (_zoo if way == _ZOO else _nnunet)(bundle, found, overlap, out)
    took = time.perf_counter() - start
    (mask,) = (file for file in Path(out).rglob("*.nii.gz") if not file.name.endswith("_brain.nii.gz"))
    return took, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, str(mask)


def _own(bundle: str, dataset_dir: str, index: int, settings: dict[str, Any]) -> None:
    parser = parse(bundle, "inference.yaml", dataset_dir=dataset_dir, device="cpu", **settings)
    parser["dataset::data"] = f"$@cases[{index}:{index + 1}]"
    parser.get_parsed_content("initialize")
    parser.get_parsed_content("evaluator").run()


def _network(bundle: str) -> tuple[torch.nn.Module, list[int]]:
    """The network with its shipped weights, and the sides of a window."""
    parser = parse(bundle, "inference.yaml")
    network = parser.get_parsed_content("network_def")
    network.load_state_dict(torch.load(parser.get_parsed_content("checkpoint"), weights_only=True))
    return network.eval(), list(parser.get_parsed_content("patch_size"))


def _zoo(bundle: str, found: dict[str, Any], overlap: float, out: str) -> None:
    """As the zoo's `brats_mri_segmentation` infers: every file through `LoadImaged`, windows over the whole volume."""
    network, window = _network(bundle)
    keys = [str(n) for n in range(len(found["image"]))]
    steps = Compose(
        [
            LoadImaged(keys),
            EnsureChannelFirstd(keys),
            ConcatItemsd(keys, name="image"),
            NormalizeIntensityd("image", nonzero=True, channel_wise=True),
        ]
    )
    data = Dataset([dict(zip(keys, found["image"], strict=True))], steps)
    inferer = SlidingWindowInferer(window, sw_batch_size=1, overlap=overlap)
    with torch.no_grad():
        for batch in DataLoader(data, batch_size=1, num_workers=0):
            batch["pred"] = inferer(batch["image"], network)
            for item in decollate_batch(batch["pred"]):
                SaveImage(out, output_postfix="seg", print_log=False)(AsDiscrete(argmax=True)(item))


def _nnunet(bundle: str, found: dict[str, Any], overlap: float, out: str) -> None:
    """nnU-Net's reading, cropping, normalisation and predictor, with the bundle's network."""
    from nnunetv2.imageio.simpleitk_reader_writer import SimpleITKIO
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor
    from nnunetv2.utilities.plans_handling.plans_handler import PlansManager

    network, window = _network(bundle)
    resample = {"is_seg": False, "order": 3, "order_z": 0, "force_separate_z": None}
    plans = PlansManager(
        {
            "dataset_name": bundle,
            "plans_name": bundle,
            "image_reader_writer": "SimpleITKIO",
            "transpose_forward": [0, 1, 2],
            "transpose_backward": [0, 1, 2],
            "experiment_planner_used": "ExperimentPlanner",
            "label_manager": "LabelManager",
            "foreground_intensity_properties_per_channel": {str(channel): {} for channel in range(4)},
            "configurations": {
                "3d_fullres": {
                    # the network is handed over below, but without this part plans are taken for version 1's
                    "architecture": {"network_class_name": "", "arch_kwargs": {}, "_kw_requires_import": []},
                    "patch_size": window,
                    "spacing": [1.0, 1.0, 1.0],
                    "batch_size": 2,
                    "data_identifier": bundle,
                    "preprocessor_name": "DefaultPreprocessor",
                    "normalization_schemes": ["ZScoreNormalization"] * 4,
                    "use_mask_for_norm": [True] * 4,
                    "resampling_fn_data": "resample_data_or_seg_to_shape",
                    "resampling_fn_data_kwargs": resample,
                    "resampling_fn_seg": "resample_data_or_seg_to_shape",
                    "resampling_fn_seg_kwargs": {**resample, "is_seg": True, "order": 1},
                    "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                    "resampling_fn_probabilities_kwargs": {**resample, "order": 1},
                }
            },
        }
    )
    dataset = {
        "channel_names": {"0": "T1", "1": "T1ce", "2": "T2", "3": "FLAIR"},
        "labels": {"background": 0, "NCR": 1, "ED": 2, "ET": 3},
        "file_ending": ".nii.gz",
    }
    predictor = nnUNetPredictor(
        tile_step_size=1 - overlap, use_mirroring=False, device=torch.device("cpu"), verbose=False, allow_tqdm=False
    )
    configuration = plans.get_configuration("3d_fullres")
    predictor.manual_initialization(network, plans, configuration, [network.state_dict()], dataset, "", None)
    image, properties = SimpleITKIO().read_images([str(file) for file in found["image"]])
    Path(out).mkdir(parents=True)
    predictor.predict_single_npy_array(image, properties, None, str(Path(out, "mask")), False)


def _files(found: dict[str, Any]) -> Sequence[str]:
    image = found["image"]
    return [str(image)] if isinstance(image, (str, Path)) else [str(file) for file in image]


def _takes_brats(bundle: str) -> bool:
    """Whether its cases are four NIfTI files with BraTS's labels, as the zoo's are."""
    return find_cases_of(bundle) is find_cases


def _regions(bundle: str, file: str | Path | Sequence[str]) -> dict[str, np.ndarray]:
    """Mask of each value of a file but background; of WT, TC and ET for BraTS cases, whose ET is 3 or 4."""
    path = file[0] if isinstance(file, (list, tuple)) else file
    label = np.rint(np.asarray(nib.load(str(path)).dataobj)).astype(np.int64)  # type: ignore[attr-defined]
    if not _takes_brats(bundle):
        return {str(value): label == value for value in np.unique(label) if value}
    label[label == 4] = 3
    return {name: np.isin(label, classes) for name, classes in REGIONS.items()}


def _dice(masks: dict[str, np.ndarray], reference: dict[str, np.ndarray] | None) -> str:
    if reference is None:
        return "-"
    pairs = [(name, masks.get(name, ~mask & mask), mask) for name, mask in reference.items()]
    both = [(name, int((a & b).sum()), int(a.sum() + b.sum())) for name, a, b in pairs]
    return " ".join(f"{name} {2 * shared / total if total else 1:.4f}" for name, shared, total in both)
