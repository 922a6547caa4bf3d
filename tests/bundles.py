"""One row for each bundle: what the tests that hold for every bundle have to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Row:
    """Settings by their names in train.yaml; all together train in seconds."""

    data: str  # fixture of its virtual cases
    small: dict[str, Any]  # recorded beside the weights, so that inference need not be told
    training: dict[str, Any]  # those that inference does not need
    narrow: dict[str, Any]  # the narrowest network
    maps: str = ""  # folder below the cases with the label maps that train it, where the cases do not
    falls: float = 0.0  # of the loss, at least, in these epochs
    networks: tuple[dict[str, Any], ...] = ({},)  # those that a user chooses between, all to be exported
    resumed: tuple[str, ...] = ()  # overlays with which a killed run is resumed, where it is not train.yaml alone
    # how much two processes may differ from one in their losses, their weights, their kernels alone
    like_one: dict[str, float] = field(default_factory=lambda: {"loss": 2e-3})
    train_overlays: tuple[str, ...] = ()  # that only this bundle has, joined by "+" as they are used together
    inference_overlays: tuple[str, ...] = ()
    # of the weights that come with it: settings that the card tells, scores on a virtual case (see test_shipped.py)
    shipped: dict[str, Any] = field(default_factory=dict)
    golden: dict[str, float] = field(default_factory=dict)
    golden_within: float = 0.01
    others: dict[str, dict[str, float]] = field(default_factory=dict)  # golden, of networks in folders of models/
    golden_settings: dict[str, Any] = field(default_factory=dict)


WIDTHS = [16, 32, 64, 128, 256]

BUNDLES = {
    "brats_resunet": Row(
        data="cohort",
        small={"channels": [4, 8, 16, 32], "patch_size": [24, 24, 24]},
        training={"epochs": 3, "batch_size": 2, "accumulation_steps": 1, "learning_rate": 0.01, "patches_per_case": 1},
        narrow={"channels": [4, 8, 16, 32]},
        like_one={"loss": 2e-4, "weights": 2e-2},
        train_overlays=(
            "compact+pretrain_virtual",
            "finetune+resume",
            "pretrain_label_maps",
            "compact+pretrain_label_maps+resume",
            "pretrain_label_maps+multi_gpu",
        ),
        shipped={
            **{"channels": WIDTHS, "patch_size": [96, 96, 96]},
            **{"modality_dropout": 0.3, "minimum_share": 0.1, "minimum_component_ml": 0.05, "temperature": 1.6},
            **{"lowres": "lowres.pt"},
        },
        golden={"dice_WT": 0.838, "dice_TC": 0.898, "dice_ET": 0.784},
        golden_settings={"overlap": 0.25},
    ),
    "brain_tissue_vnet": Row(
        data="heads",
        small={
            **{"init_filters": 2, "patch_size": [32, 32, 16], "spacing": [5, 5, 5], "fit": "none"},
            **{"clahe": 0.02, "normalise": "percentile"},
        },
        training={"epochs": 4, "batch_size": 2, "accumulation_steps": 1, "learning_rate": 0.01, "patches_per_case": 2},
        narrow={"init_filters": 2},
        networks=({"norm": "batch"}, {"norm": "instance"}),
        falls=0.03,
        resumed=("train_from_labels.yaml",),
        like_one={"loss": 0.1},  # on CPU, batch norms see each process's own patches
        train_overlays=(
            "torchio+pad+n4",
            "pad+n4+resume",
            "pad+n4+finetune",
            "train_from_labels",
            "train_from_labels+resume",
            "train_from_labels+pretrain_label_maps+finetune",
            "train_from_labels+pretrain_label_maps+lowres",
            "train_from_labels+pretrain_label_maps+lowres+resume",
            "finetune",
        ),
        inference_overlays=("whole_head", "whole_head+evaluate"),
        shipped={"init_filters": 8, "norm": "instance", "whole_head": False, "lowres": "lowres.pt"},
        golden={"dice_CSF": 0.588, "dice_GM": 0.743, "dice_WM": 0.863},
    ),
    "brain_metastasis_attention_unet": Row(
        data="metastases",
        small={"channels": [4, 8, 16], "patch_size": [32, 32, 32], "network": "unet"},  # attention_unet has batch norms
        training={"epochs": 3, "batch_size": 2, "accumulation_steps": 1, "learning_rate": 0.005, "loss::batch": False},
        narrow={"channels": [2, 4, 8]},
        networks=({"network": "attention_unet"}, {"network": "unet"}, {"network": "resunet"}),
        like_one={"loss": 2e-3, "kernels": 2e-3},  # biases before a norm have no gradient but rounding
        train_overlays=("pretrain_virtual", "warm_start", "finetune+resume"),
        inference_overlays=("evaluate+choose_minimum_lesion",),
        shipped={
            **{"network": "attention_unet", "channels": WIDTHS, "patch_size": [96, 96, 96], "modality_dropout": 0.3},
            **{"minimum_lesion_ml": 0.02, "minimum_core_ml": 0.02, "fill_core": True, "minimum_enhancing_ml": 0.01},
            **{"lowres": "lowres.pt"},
        },
        golden={"dice_WT": 0.927, "dice_TC": 0.721, "dice_ET": 0.685},
        golden_within=0.02,
        others={
            "unet": {"dice_WT": 0.919, "dice_TC": 0.717, "dice_ET": 0.662},
            "resunet": {"dice_WT": 0.887, "dice_TC": 0.579, "dice_ET": 0.636},
        },
    ),
    "brats_unet_h5": Row(
        data="h5_cohort",
        small={"channels": [4, 8, 16], "uniform_shape": [32, 32, 32]},
        training={"epochs": 3, "batch_size": 2, "learning_rate": 0.01},
        narrow={"channels": [2, 4, 8]},
        like_one={"loss": 2e-4, "kernels": 1e-4},
        networks=({"target": "classes"},),  # regions are three of these four
        train_overlays=("pretrain_virtual", "finetune+resume", "native+finetune", "native+chunks+multi_gpu"),
        shipped={
            **{"target": "regions", "channels": WIDTHS, "uniform_shape": [128, 128, 128]},
            **{"modality_dropout": 0.3, "minimum_share": 0.1, "minimum_component_ml": 0.05},
        },
        golden={"dice_WT": 0.903, "dice_TC": 0.827, "dice_ET": 0.665},
        golden_within=0.02,
    ),
    "abdomen_ct_vnet": Row(
        data="abdomens",
        small={"channels": [4, 8, 8], "patch_size": [24, 24, 24], "spacing": [10, 10, 10]},
        training={"epochs": 4, "batch_size": 2, "learning_rate": 0.005},
        narrow={"channels": [2, 4, 4]},
        falls=0.05,
        resumed=("organs13.yaml",),
        like_one={"loss": 0.1},  # each process draws its own dropout
        train_overlays=("organs13",),
    ),
    "brain_mask_unet": Row(
        data="heads",
        maps="derivatives/labels",
        small={"channels": [4, 8, 8], "patch_size": [24, 24, 24], "spacing": [5, 5, 5]},
        training={"epochs": 3, "batch_size": 2, "samples_per_epoch": 8, "learning_rate": 0.01, "val_interval": 1},
        narrow={"channels": [2, 4, 4]},
        falls=0.1,
        train_overlays=("resume",),
        shipped={"channels": [32, 64, 96, 128], "patch_size": [96, 96, 96], "spacing": [2.0, 2.0, 2.0]},
        golden={"dice_brain": 0.968},
    ),
}


def options(**settings: Any) -> list[str]:
    """Settings as they are written on the command line."""
    return [part for name, value in settings.items() for part in (f"--{name}", str(value))]
