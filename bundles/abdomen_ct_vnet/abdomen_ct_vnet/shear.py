"""Grids whose axes are not at right angles, as a tilted gantry gives them: refused from the header."""

from __future__ import annotations

import nibabel as nib
import numpy as np
from monai.data.utils import zoom_affine
from nibabel.affines import voxel_sizes

from bundlekit.cases.case import Case
from bundlekit.errors import Finding
from bundlekit.images.nifti import open_nifti

from .postprocessing import grid_positions


def check_shear(case: Case) -> list[Finding]:
    """A finding for a CT from whose grid no resampling leads to one with right angles and back along the axes alone.

    Reads the header. The label, if any, is on the same grid.
    """
    (file,) = case["image"]
    header = open_nifti(file)
    affine, shape = np.asarray(header.affine, float), [int(n) for n in header.shape[:3]]
    turn = nib.orientations.io_orientation(affine)
    upright = affine @ nib.orientations.inv_ornt_aff(turn, shape)  # RAS, as the pipeline has it
    straight = zoom_affine(upright, voxel_sizes(upright), diagonal=False)  # what MONAI resamples to
    try:
        grid_positions(affine, shape, straight)
    except ValueError:
        columns = affine[:3, :3] / voxel_sizes(affine)
        cosines = (abs(float(columns[:, i] @ columns[:, j])) for i, j in ((0, 1), (0, 2), (1, 2)))
        angle = np.degrees(np.arccos(max(cosines)))
        return [
            Finding(
                file,
                f"a sheared grid: two axes at {angle:.1f} degrees",
                "axes at right angles",
                "convert the CT again with the tilt of the gantry corrected (dcm2niix writes such a file, too), or "
                "resample CT and label to a grid without shear",
            )
        ]
    return []
