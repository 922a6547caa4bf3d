"""Class weights from the labels of a data set."""

from __future__ import annotations

from typing import Any

import numpy as np

from bundlekit.cases.case import require_cases
from bundlekit.class_weights import balanced_weights, count_voxels
from tools.bundles import find_cases_of, load_case_of, names, parse


def weights(
    bundle: str, dataset_dir: str, num_workers: int = 2, allow_unprepared: bool = False, **options: Any
) -> None:
    """Print class weights for a weighted loss, from the voxel counts of all labels.

    "balanced" is scikit-learn's: N / (K n_c) for N voxels, K classes and n_c voxels of class c; its square root is the
    milder choice where a class is a thousandth of the volume.

    Example: python -m tools weights brain_metastasis_attention_unet --dataset_dir DIR

    Args:
        bundle: name of a bundle whose labels are class indices once decoded.
        dataset_dir: folder of labelled cases.
        num_workers: threads that decode.
        allow_unprepared: accept scans with the skull or in thick slices, of the bundles for BraTS data.
        options: further settings of the bundle's data, e.g. --et_label 3.
    """
    if "class_weights" not in parse(bundle, "train.yaml"):
        having = [name for name in names() if "class_weights" in parse(name, "train.yaml")]
        raise ValueError(f"{bundle}'s loss has no class weights; those of {', '.join(having)} have.")
    load = load_case_of(bundle, allow_unprepared)
    cases = find_cases_of(bundle)(dataset_dir, **options)
    require_cases(cases)
    classes = ["background", *parse(bundle, "inference.yaml").get_parsed_content("class_names")]
    counts = count_voxels(lambda case: load(case)["label"], cases, len(classes), num_workers)
    balanced = balanced_weights(counts, classes)
    print(f"{len(cases)} case(s), voxels of each class: {counts.tolist()}")
    for name, values in (("balanced", balanced), ("square root of balanced", np.sqrt(balanced))):
        print(f'{name:<24} --class_weights "[{",".join(f"{v:.4g}" for v in values)}]"')
