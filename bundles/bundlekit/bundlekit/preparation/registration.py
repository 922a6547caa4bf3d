"""The rigid move that brings one modality of a head onto another, and whether it can be believed."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import SimpleITK as sitk  # noqa: N813
from scipy import ndimage
from scipy.spatial.transform import Rotation
from sklearn.metrics import mutual_info_score

from bundlekit.images.air import below_the_brain
from bundlekit.images.bias import without_bias_field
from bundlekit.preparation.grids import Grid, ras_matrix, resample, split, to_itk

_BINS = 32
_SCALE = 60.0  # mm: a radian moves the border of a brain by about this
_TURN = np.deg2rad(16)  # of the starts
_MARGIN_MM = 6.0  # around the brain of the reference: its border counts
_WITH_SKULL_MM = 20.0  # where both scans have a skull: it counts, too
_SKULL = 0.2  # of the brain's mean intensity: what is around a brain that has its skull has more
_FIELD_MM = 4.0  # edge of the voxels by which a bias field is found
_RIM_MM = 5.0  # of a field of view that no point of a search lies in
_LEAST_SCANNED = 0.3  # of the brain of the reference
_ASKEW = (0.31, 0.47, 0.63)  # rotation vector, radians: in line with no scan
# edge of a voxel (mm), first and last step (mm), points: a level of the search
_COARSE, _MIDDLE, _FINE = (4.0, 4.0, 0.1, 12_000), (2.0, 1.0, 0.03, 20_000), (1.5, 0.5, 0.01, 40_000)

# what a result has to have; chosen on virtual and moved cases, see docs/raw_scans.md
LEAST_INFORMATION = 0.9  # of that at the best start: in thick slices it tells moves of a mm apart with an error
LEAST_OVERLAP = 0.80  # Dice of the two brains
LARGEST_SPREAD_MM = 1.0  # between two searches that use other points
AGREE_MM = 4.0  # searches of the coarse level that end so near to the result agree with it
LEAST_AGREEING = 2
LARGEST_TURN = 50.0  # degrees


@dataclass(frozen=True)
class Volume:
    """A scan to be registered.

    Args:
        voxels: HWD.
        affine: 4x4, voxel to mm, RAS+.
        brain: HWD bool.
    """

    voxels: np.ndarray
    affine: np.ndarray
    brain: np.ndarray


@dataclass
class Registration:
    """A rigid move and what speaks for it.

    Args:
        matrix: 4x4, from a point of the reference to that of the modality; mm, RAS+.
        information: mutual information (nats) within the brain of the reference, after the move.
        information_before: by the headers' positions alone.
        overlap: Dice of the two brains where both were scanned.
        agreeing: starts that ended within 4 mm of the result.
        starts: how many there were.
        spread_mm: mean distance in the brain between two last searches that use other points.
        doubts: what speaks against it, for a message; none: it can be believed.
    """

    matrix: np.ndarray
    information: float = 0.0
    information_before: float = 0.0
    overlap: float = 1.0
    agreeing: int = 0
    starts: int = 0
    spread_mm: float = 0.0
    doubts: list[str] = field(default_factory=list)

    @property
    def turn_degrees(self) -> float:
        """Angle of the rotation."""
        return float(np.rad2deg(np.arccos(np.clip((np.trace(self.matrix[:3, :3]) - 1) / 2, -1, 1))))


def register(fixed: Volume, moving: Volume, seed: int = 0, near: bool = False) -> Registration:
    """Find the rigid move by Mattes' mutual information in and around the brain of the reference.

    Where both scans have a skull, it counts as far as 20 mm away from the brain.

    Thick slices are cut into thin ones by a spline first. SimpleITK searches in three levels of resolution. The first
    begins at several places: where
    the headers have the two, and the middles of the two brains on each other with seven rotations. The two best ends
    go on; the last level is run twice with other points, which tells how exact it is. Mattes et al., PET-CT image
    registration in the chest using free-form deformations, IEEE TMI 22(1), 2003.

    Args:
        fixed: the reference, as of `searched`.
        moving: the modality, on a grid of its own.
        seed: of the points that are drawn.
        near: search only near to where the headers have the two.

    Returns:
        The best move found; see its `doubts`.
    """
    images = _Pair(_in_thin_slices(fixed), _in_thin_slices(moving))
    starts = images.starts()[:1] if near else images.starts()
    ends = [images.search(start, _COARSE, seed + 1) for start in starts]
    scores = [images.information(end) for end in ends]
    order = sorted(range(len(ends)), key=lambda index: -scores[index])
    second = [index for index in order[1:] if images.distance(ends[index], ends[order[0]]) > AGREE_MM][:1]
    middle = [images.search(ends[index], _MIDDLE, seed + 2) for index in [order[0], *second]]
    best = max(middle, key=images.information)
    first, again = (images.search(best, _FINE, seed + number) for number in (3, 4))
    # modalities of one session mostly lie right by their headers; nothing that is no better takes their place
    last = max((first, again, starts[0]), key=images.information)
    result = Registration(ras_matrix(last))
    result.information, result.information_before = images.information(last), images.information(starts[0])
    result.overlap = images.overlap(last)
    result.starts = len(starts)
    result.agreeing = sum(images.distance(end, last) <= AGREE_MM for end in ends)
    result.spread_mm = images.distance(first, again)
    result.doubts = _doubts(result, max(images.information(start) for start in starts))
    return result


def searched(voxels: np.ndarray, affine: np.ndarray, brain: np.ndarray) -> Volume:
    """A scan as it is best searched: without its bias field, which would move the result by mm.

    Args:
        voxels: HWD.
        affine: 4x4, voxel to mm, RAS+.
        brain: HWD bool.
    """
    if not brain.any():
        return Volume(voxels, affine, brain)
    if not voxels[~brain].any():  # stripped: a bias field is a factor, and air stays 0
        voxels = np.maximum(below_the_brain(np.asarray(voxels, np.float32)), 0)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    shrink = np.maximum(np.round(_FIELD_MM / spacing), 1).astype(int).tolist()
    flat = without_bias_field(np.asarray(voxels, np.float32), brain, shrink, (50, 50, 30))
    return Volume(flat.astype(np.float32), affine, brain)


def distance_mm(one: np.ndarray, other: np.ndarray, points: np.ndarray) -> float:
    """Mean distance of the places to which two 4x4 moves bring points (Nx3, mm)."""
    return float(np.linalg.norm(points @ (one - other)[:3, :3].T + (one - other)[:3, 3], axis=1).mean())


def mutual_information(one: np.ndarray, other: np.ndarray) -> float:
    """Mutual information of the intensities of two images at the same places, in nats.

    The bins of each lie between its percentiles of 0.5 and 99.5 %.

    Args:
        one: intensities, of any shape.
        other: intensities, as many.
    """
    joint = np.histogram2d(_binned(one), _binned(other), bins=_BINS, range=[[0, _BINS], [0, _BINS]])[0]
    return float(mutual_info_score(None, None, contingency=joint))


def _binned(values: np.ndarray) -> np.ndarray:
    low, high = np.percentile(values, (0.5, 99.5))
    return np.clip((values.ravel() - low) / max(high - low, 1e-6) * _BINS, 0, _BINS - 1e-3)


def _doubts(result: Registration, best_start: float) -> list[str]:
    doubts = []
    if result.overlap < LEAST_OVERLAP:
        doubts.append(f"the brains overlap by a Dice of {result.overlap:.2f}, expected {LEAST_OVERLAP:.2f} or more")
    if result.information < best_start * LEAST_INFORMATION:
        doubts.append(
            f"mutual information fell from {best_start:.3f} at the best start to {result.information:.3f} nats"
        )
    if result.agreeing < min(LEAST_AGREEING, result.starts):
        doubts.append(f"{result.agreeing} of {result.starts} starts end there, expected {LEAST_AGREEING} or more")
    if result.spread_mm > LARGEST_SPREAD_MM:
        doubts.append(f"a second search ends {result.spread_mm:.1f} mm away, expected {LARGEST_SPREAD_MM:.1f} at most")
    if result.turn_degrees > LARGEST_TURN:
        doubts.append(f"a rotation by {result.turn_degrees:.0f} degrees, expected {LARGEST_TURN:.0f} at most")
    return doubts


class _Pair:
    """Two images and what a search needs of them; transforms are SimpleITK's, from the reference to the modality."""

    def __init__(self, fixed: Volume, moving: Volume) -> None:
        self.fixed, self.moving = fixed, moving
        self.margin_mm = _WITH_SKULL_MM if _has_skull(fixed) and _has_skull(moving) else _MARGIN_MM
        self.points = _points(fixed)  # RAS
        self.fixed_middle = self.points.mean(0)
        self.moving_middle = _points(moving).mean(0)
        whole = to_itk(_capped(fixed.voxels), fixed.affine)
        brain = to_itk(fixed.brain.astype(np.float32), fixed.affine)
        other = to_itk(_capped(moving.voxels), moving.affine)
        self.levels = {}
        for edge in (_COARSE[0], _MIDDLE[0], _FINE[0]):
            grid = self._oblique(edge)
            small, there = (
                sitk.Resample(_shrunk(image, edge), grid, sitk.Transform(), sitk.sitkLinear, 0.0, sitk.sitkFloat32)
                for image in (whole, brain)
            )
            mask = sitk.BinaryDilate(there > 0.2, [round(self.margin_mm / edge)] * 3)
            self.levels[edge] = small, mask, _shrunk(other, edge)
        small, mask, _ = self.levels[_MIDDLE[0]]
        self.inside = sitk.GetArrayViewFromImage(mask).astype(bool)
        self.inside[np.indices(self.inside.shape).sum(0) % 3 > 0] = False  # a third of the places is enough
        self.reference = sitk.GetArrayViewFromImage(small)[self.inside]

    def _oblique(self, edge_mm: float) -> sitk.Image:
        """An empty image of cubes around the brain, in line with none of both images.

        On a grid of its own an image is not interpolated, hence not smoothed, and in the middle between two slices it
        is smoothed most: mutual information would tell of that, and pull towards such moves.
        """
        farthest = np.linalg.norm(self.points - self.fixed_middle, axis=1).max() + self.margin_mm
        half = int(np.ceil(farthest / edge_mm)) + 1
        affine = np.eye(4)
        affine[:3, :3] = edge_mm * Rotation.from_rotvec(_ASKEW).as_matrix()
        affine[:3, 3] = self.fixed_middle - affine[:3, :3] @ np.full(3, half)
        return to_itk(np.zeros([2 * half + 1] * 3, np.uint8), affine)

    def starts(self) -> list[sitk.Euler3DTransform]:
        """That of the headers first."""
        turns = [np.zeros(3), *(sign * _TURN * axis for axis in np.eye(3) for sign in (1, -1))]
        shift = (self.moving_middle - self.fixed_middle) * (-1, -1, 1)  # LPS
        return [self._euler(np.zeros(3), np.zeros(3)), *(self._euler(turn, shift) for turn in turns)]

    def _euler(self, angles: np.ndarray, shift: np.ndarray) -> sitk.Euler3DTransform:
        transform = sitk.Euler3DTransform()
        transform.SetCenter((self.fixed_middle * (-1, -1, 1)).tolist())
        transform.SetParameters([*angles.tolist(), *shift.tolist()])
        return transform

    def search(
        self, start: sitk.Euler3DTransform, level: tuple[float, float, float, int], seed: int
    ) -> sitk.Euler3DTransform:
        """The best move near to `start`; `start` itself if its images do not meet."""
        edge, first, last, points = level
        fixed, mask, moving = self.levels[edge]
        if edge < _COARSE[0]:
            mask = self._scanned(mask, moving, start)
        method = sitk.ImageRegistrationMethod()
        method.SetMetricAsMattesMutualInformation(_BINS)
        share = points / max(int(sitk.GetArrayViewFromImage(mask).sum()), 1)
        if share < 1:
            method.SetMetricSamplingStrategy(method.RANDOM)  # from the whole image; those in the mask are kept
            method.SetMetricSamplingPercentage(share, seed)
        method.SetMetricFixedMask(mask)
        method.SetInterpolator(sitk.sitkLinear)
        method.SetOptimizerAsRegularStepGradientDescent(first, last, 100, 0.5, 1e-7)
        method.SetOptimizerScales([_SCALE**2] * 3 + [1.0] * 3)
        transform = sitk.Euler3DTransform(start)
        method.SetInitialTransform(transform, inPlace=True)
        try:
            method.Execute(fixed, moving)
        except RuntimeError:  # ITK: all points lie outside of the other image
            return start
        return transform

    @staticmethod
    def _scanned(mask: sitk.Image, moving: sitk.Image, start: sitk.Euler3DTransform) -> sitk.Image:
        """The part of a mask that lies well within the field of the other image, so that no step leaves it.

        Points that leave the field would be dropped: the fewer, the larger the mutual information of the others.
        """
        field = sitk.Image(moving.GetSize(), sitk.sitkUInt8)
        field.CopyInformation(moving)
        rim = [
            min(int(np.ceil(_RIM_MM / mm)), (size - 1) // 4)
            for mm, size in zip(moving.GetSpacing(), moving.GetSize(), strict=True)
        ]
        inner = sitk.ConstantPad(sitk.Crop(field + 1, rim, rim), rim, rim, 0)
        there = sitk.Resample(inner, mask, start, sitk.sitkNearestNeighbor, 0, sitk.sitkUInt8)
        part = sitk.And(sitk.Cast(mask, sitk.sitkUInt8), there)
        kept, whole = (int(sitk.GetArrayViewFromImage(image).sum()) for image in (part, mask))
        return part if kept > _LEAST_SCANNED * whole else mask

    def information(self, transform: sitk.Euler3DTransform) -> float:
        """Mutual information in and around the brain of the reference; what was not scanned is air."""
        grid, _, moving = self.levels[_MIDDLE[0]]
        there = sitk.Resample(moving, grid, transform, sitk.sitkLinear, 0.0, sitk.sitkFloat32)
        return mutual_information(self.reference, sitk.GetArrayViewFromImage(there)[self.inside])

    def distance(self, one: sitk.Euler3DTransform, other: sitk.Euler3DTransform) -> float:
        """Mean distance in the brain, mm."""
        return distance_mm(ras_matrix(one), ras_matrix(other), self.points)

    def overlap(self, transform: sitk.Euler3DTransform) -> float:
        """Dice of the brains where both were scanned."""
        brain, affine = self.moving.brain, self.moving.affine
        matrix = ras_matrix(transform)
        grid = Grid(self.fixed.brain.shape, self.fixed.affine)  # type: ignore[arg-type]
        scanned = resample(np.ones(brain.shape, np.float32), affine, grid, matrix) > 0.5
        there = resample(brain, affine, grid, matrix)[scanned] > 0.5
        here = self.fixed.brain[scanned]
        return float(2 * (here & there).sum() / max(here.sum() + there.sum(), 1))


def _has_skull(volume: Volume) -> bool:
    """Whether there is tissue around the brain, farther away than the border of a mask reaches."""
    spacing = np.linalg.norm(volume.affine[:3, :3], axis=0)
    steps = np.maximum(np.round(_FIELD_MM / spacing), 1).astype(int)
    some = tuple(slice(None, None, int(step)) for step in steps)  # enough, and many times faster
    voxels, brain = volume.voxels[some], volume.brain[some]
    away = ndimage.distance_transform_edt(~brain, sampling=spacing * steps)
    around = (away > _MARGIN_MM) & (away <= _WITH_SKULL_MM)
    if not (around.any() and brain.any()):
        return False
    return float(voxels[around].mean()) > _SKULL * float(voxels[brain].mean())


def _in_thin_slices(volume: Volume) -> Volume:
    """Slices cut into parts of about 1.5 mm by a cubic spline through them.

    Between thick slices linear interpolation smooths, most in the middle: mutual information tells of that, and ends up
    to a mm or two beside the true move.
    """
    grid = Grid(volume.voxels.shape, volume.affine)  # type: ignore[arg-type]
    parts = np.maximum(np.round(grid.spacing / _FINE[0]), 1).astype(int)
    thin = split(grid, parts.tolist())
    if thin.shape == grid.shape:
        return volume
    voxels = resample(volume.voxels, volume.affine, thin, spline=True)
    np.clip(voxels, volume.voxels.min(), volume.voxels.max(), out=voxels)
    brain = volume.brain
    for axis, number in enumerate(parts):
        brain = np.repeat(brain, number, axis)
    return Volume(voxels, thin.affine, brain)


def _capped(image: np.ndarray) -> np.ndarray:
    """Float32 without the brightest 0.1 % of what is not air: vessels and fat would take most bins."""
    some = image[::2, ::2, :]
    some = some[some > 0]
    return np.minimum(image, np.percentile(some, 99.9) if some.size else image.max()).astype(np.float32)


def _shrunk(image: sitk.Image, edge_mm: float) -> sitk.Image:
    """Voxels averaged to edges of at most about `edge_mm`; those that are larger stay."""
    factors = [
        int(np.clip(round(edge_mm / mm), 1, size)) for mm, size in zip(image.GetSpacing(), image.GetSize(), strict=True)
    ]
    return sitk.BinShrink(image, factors)


def _points(volume: Volume, most: int = 5000) -> np.ndarray:
    """Places in the brain (Nx3, mm, RAS+), evenly; of an empty mask the middle of the image."""
    places = np.argwhere(volume.brain)[:: max(int(volume.brain.sum()) // most, 1)].astype(np.float64)
    if not len(places):
        places = (np.asarray([volume.brain.shape]) - 1) / 2
    return places @ volume.affine[:3, :3].T + volume.affine[:3, 3]
