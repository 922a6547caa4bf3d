"""A torso in Hounsfield units (HU): its wall and bones, and 13 organs as deformed ellipsoids and tubes.

Coordinates are RAS+ mm around the middle of the torso at the level of the kidneys: x to the patient's right, y to the
front, z up. A shape is a function that is positive inside and about the distance to its surface in mm there, so that a
voxel on a surface is shared between two tissues (partial volume). Sizes, places and HU are typical of adults, from
anatomy textbooks, not measured on a data set.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bundlekit.virtual.fields import Positions, SmoothField

ORGANS: dict[str, int] = {
    "liver": 1, "right kidney": 2, "spleen": 3, "pancreas": 4, "aorta": 5, "inferior vena cava": 6,
    "right adrenal gland": 7, "left adrenal gland": 8, "gallbladder": 9, "esophagus": 10, "stomach": 11, "duodenum": 12,
    "left kidney": 13,
}  # fmt: skip
"""FLARE22's numbers."""

# HU of what takes up contrast: without contrast, arterial, portal venous and late phase
PHASES: dict[str, tuple[float, float, float, float]] = {
    "liver": (56, 68, 112, 92), "right kidney": (34, 150, 190, 165), "spleen": (48, 125, 122, 98),
    "pancreas": (40, 100, 92, 72), "aorta": (42, 320, 165, 118), "inferior vena cava": (40, 70, 148, 120),
    "right adrenal gland": (32, 75, 72, 55), "stomach": (42, 75, 82, 68), "duodenum": (40, 72, 80, 66),
    "esophagus": (38, 56, 62, 55), "gallbladder": (10, 11, 12, 12), "muscle": (52, 56, 62, 60),
    "vessel": (40, 80, 170, 125),
}  # fmt: skip

_AIR, _FAT, _LUNG, _GAS, _FLUID = -1000.0, -103.0, -830.0, -850.0, 14.0
_SCALE = 0.42  # a `SmoothField` covers 240 x 240 x 155 mm: that much of one of ours of 570 x 570 x 370 mm
_MARGIN_MM = 24.0  # by which the deformation and the rough surface can carry a shape out of its box


@dataclass(frozen=True)
class _Shape:
    """Spheres along a line, as a tube of varying radius; one point with three radii is an ellipsoid.

    `points` (N, 3) and `radii` (N, 3), mm.
    """

    points: np.ndarray
    radii: np.ndarray

    def box(self, axes: Positions) -> tuple[slice, slice, slice] | None:
        """The part of the grid that the shape may reach."""
        slices = []
        for axis in range(3):
            low = float((self.points - self.radii)[:, axis].min()) - _MARGIN_MM
            high = float((self.points + self.radii)[:, axis].max()) + _MARGIN_MM
            found = np.flatnonzero((axes[axis] >= low) & (axes[axis] <= high))
            if not len(found):
                return None
            slices.append(slice(int(found[0]), int(found[-1]) + 1))
        return slices[0], slices[1], slices[2]

    def inside(self, where: np.ndarray) -> np.ndarray:
        """Depth in mm below the surface (negative outside) at `where` (3, ...)."""
        if len(self.points) == 1:
            offset = [(w - p) / r for w, p, r in zip(where, self.points[0], self.radii[0], strict=True)]
            distance = np.sqrt(sum(o * o for o in offset))
            return ((1 - distance) * float(self.radii[0].min())).astype(np.float32)
        best: np.ndarray | None = None
        for start, stop, thin, thick in zip(self.points, self.points[1:], self.radii, self.radii[1:], strict=False):
            along = stop - start
            length = float(along @ along)
            t = sum((w - s) * a for w, s, a in zip(where, start, along, strict=True)) / length
            t = np.clip(t, 0, 1)
            distance = np.sqrt(sum((w - s - t * a) ** 2 for w, s, a in zip(where, start, along, strict=True)))
            depth = thin[0] + t * (thick[0] - thin[0]) - distance
            best = depth if best is None else np.maximum(best, depth)
        assert best is not None
        return best.astype(np.float32)


class Torso:
    """One patient, drawn at random; `sample` shows it on any grid.

    Args:
        rng: everything that varies is drawn here, once.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.width, self.depth = rng.uniform(142, 182), rng.uniform(95, 128)  # half axes of the body
        self.fat = rng.uniform(10, 30)  # under the skin
        self.wall = rng.uniform(11, 17)  # muscle
        self.size = (self.width - self.fat + self.depth - self.fat) / 250  # of everything inside
        phase = rng.choice(4, p=[0.15, 0.25, 0.5, 0.1])
        self.hu = {name: values[phase] * rng.uniform(0.9, 1.1) for name, values in PHASES.items()}
        self.early = phase == 1
        self.dome = rng.uniform(62, 88)  # height of the diaphragm
        self.oral_contrast = rng.uniform() < 0.25
        self.full = rng.uniform(0.25, 0.75)  # how far up fluid stands in the stomach
        self.couch = rng.uniform(6, 14)  # below the back
        self.warp = [SmoothField.draw(rng, 62 * _SCALE) for _ in range(3)]
        self.rough = SmoothField.draw(rng, 20 * _SCALE)
        self.grain = SmoothField.draw(rng, 7 * _SCALE)
        self.loops = [SmoothField.draw(rng, 19 * _SCALE) for _ in range(2)]
        self.shapes = {name: self._placed(rng, parts) for name, parts in _atlas(rng).items()}

    def sample(self, axes: Positions, voxel_mm: float) -> tuple[np.ndarray, np.ndarray]:
        """HU without noise (XYZ float32) and labels (XYZ uint8, see `ORGANS`) on a grid.

        Args:
            axes: positions along x, y and z in mm, RAS+.
            voxel_mm: size of the largest side of a voxel: how soft surfaces are.
        """
        lattice: Positions = tuple(  # type: ignore[assignment]
            np.asarray(axis) * _SCALE + middle for axis, middle in zip(axes, (119.5, 119.5, 77.0), strict=True)
        )
        plain = np.stack(np.meshgrid(*(np.asarray(a, np.float32) for a in axes), indexing="ij"))
        moved = plain + 5.0 * np.stack([field.array_at(lattice) for field in self.warp])
        rough, grain = self.rough.array_at(lattice), self.grain.array_at(lattice)
        loops = [field.array_at(lattice) for field in self.loops]
        soft = 1.0 / max(voxel_mm, 1.0)
        hu, cavity, lung = self._body(plain, moved, rough, grain, loops, soft)
        label = np.zeros(hu.shape, np.uint8)
        for name, shape_parts in self.shapes.items():
            for number, shape in enumerate(shape_parts):
                box = shape.box(axes)
                if box is not None:
                    where = moved[(slice(None), *box)]
                    depth = np.minimum(shape.inside(where) + 1.4 * rough[box], cavity[box] - 1.0)
                    depth = np.minimum(depth, -lung[box]) if name != "esophagus" else depth
                    self._paint(hu[box], label[box], name, number, depth, where, grain[box], soft)
        return hu, label

    def _placed(self, rng: np.random.Generator, parts: Sequence[_Shape]) -> list[_Shape]:
        """The parts of an organ at this patient's size, shifted and scaled a little."""
        shift, scale = rng.normal(0, [2.5, 2.5, 4.0]), rng.uniform(0.92, 1.08)
        stretch = np.array([self.size, self.size, 1.0])
        return [_Shape(part.points * stretch + shift, part.radii * scale * (stretch + 1) / 2) for part in parts]

    def _body(
        self,
        plain: np.ndarray,
        moved: np.ndarray,
        rough: np.ndarray,
        grain: np.ndarray,
        loops: Sequence[np.ndarray],
        soft: float,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """HU of all but the organs, and how deep (mm) a voxel lies in the cavity and in the lungs."""
        x, y, z = moved
        # the radius at which a superellipse through the voxel cuts the axes; flat at the back, wider at the hips
        flat = np.where(y < 0, 0.92, 1.0)
        hips = 1 + 0.00035 * np.clip(-z, 0, None)
        radius = (np.abs(x / (self.width * hips)) ** 2.3 + np.abs(y / (self.depth * flat)) ** 2.3) ** (1 / 2.3)
        scale = np.where(np.abs(x) > np.abs(y), self.width, self.depth)
        skin = (1 - radius) * scale  # depth below the skin
        fat = self.fat * (1 + 0.5 * np.clip(-z / 120, -0.5, 1)) * np.where(y < -20, 1.15, 0.9)
        wall, cavity = skin - fat, skin - fat - self.wall
        hu = np.full(plain.shape[1:], _AIR, np.float32)
        self._couch(hu, plain, soft)
        _mix(hu, skin, _FAT + 7 * grain, soft)
        _mix(hu, np.minimum(skin, 2.2 - skin), 10.0, soft)  # the skin itself
        muscle = self.hu["muscle"] + 6 * grain + np.where(np.sin(wall * 1.1 + rough) > 0.93, -60, 0)
        _mix(hu, wall, muscle, soft)
        _mix(hu, cavity, _FAT + 8 * grain, soft)
        self._bowel(hu, cavity, z, loops, soft)
        # paraspinal, psoas and the crura
        for side in (-1, 1):
            _mix(hu, _ellipse(x - side * 34, y + 0.72 * self.depth, 32, 21), muscle, soft)
            psoas = np.clip(0.6 - z / 120, 0.25, 1.2)
            _mix(hu, _ellipse(x - side * 40, y + 0.42 * self.depth, 22 * psoas, 19 * psoas), muscle, soft)
            _mix(hu, _ellipse(x - side * 13, y + 0.26 * self.depth, 8, 10) - np.clip(-z / 6, 0, 30), muscle, soft)
        lung = self._lungs(hu, x, y, z, cavity, rough, soft)
        self._bones(hu, x, y, z, wall, grain, soft)
        return hu, cavity, lung

    def _couch(self, hu: np.ndarray, plain: np.ndarray, soft: float) -> None:
        x, y = plain[0], plain[1]
        top = -(0.92 * self.depth + self.couch) + 0.0009 * x**2  # a shallow trough
        inside = np.minimum(np.minimum(top - y, y - top + 42), 205 - np.abs(x))
        _mix(hu, inside, -870.0, soft)  # foam
        _mix(hu, np.minimum(inside, 3.0 - inside), 60.0, soft)  # shell

    def _bowel(
        self, hu: np.ndarray, cavity: np.ndarray, z: np.ndarray, loops: Sequence[np.ndarray], soft: float
    ) -> None:
        """Loops of bowel in the fat of the cavity, more of them lower down; some with gas."""
        inside = np.minimum(9 * (0.95 - np.abs(loops[0])) - 4 + np.clip(-z / 25, -6, 2), cavity - 4)
        _mix(hu, inside, self.hu["duodenum"] * 0.8 + 14 * loops[1], soft)
        _mix(hu, np.minimum(inside - 5, 6 * (loops[1] - 1.1)), _GAS, soft)

    def _lungs(
        self,
        hu: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: np.ndarray,
        cavity: np.ndarray,
        rough: np.ndarray,
        soft: float,
    ) -> np.ndarray:
        """Lung above the diaphragm, which is a dome on each side: it reaches down along the wall. Heart between."""
        side = np.abs(x) - 0.46 * self.width
        dome = self.dome + 34 - 0.0115 * (side**2 + 1.25 * (y - 0.05 * self.depth) ** 2) - np.where(x < 0, 6, 0)
        lung = np.minimum(np.minimum((z - dome) * 0.6, cavity - 1), np.abs(x) - 26 + 0.2 * np.clip(-y, -40, 60))
        _mix(hu, lung, _LUNG + 22 * rough, soft)
        heart = _ellipse(x + 18, y - 0.28 * self.depth, 52, 40) - np.clip((self.dome + 22 - z) * 1.2, 0, 80)
        _mix(hu, np.minimum(heart, cavity - 3), 0.75 * self.hu["aorta"] + 12, soft)
        return np.where(heart > 0, np.maximum(lung, 1), lung)

    def _bones(
        self,
        hu: np.ndarray,
        x: np.ndarray,
        y: np.ndarray,
        z: np.ndarray,
        wall: np.ndarray,
        grain: np.ndarray,
        soft: float,
    ) -> None:
        spongy = 190 + 45 * grain
        back = -0.56 * self.depth
        between = np.abs((z + 8) % 34 - 17)  # from the middle of a vertebra: 0, to the middle of a disc: 17
        body = _ellipse(x, y - back, 23 - 1.5 * np.cos(between / 17 * np.pi), 17)
        disc = between > 13.5
        _mix(hu, body, np.where(disc, 78.0, spongy), soft)
        _mix(hu, np.minimum(body, 2.0 - body) - np.where(disc, 9, 0), 520.0, soft)
        arch = np.minimum(_ellipse(x, y - back + 23, 16, 12), 5.5 - _ellipse(x, y - back + 23, 16, 12))
        _mix(hu, arch, 420.0, soft)
        _mix(hu, _ellipse(x, y - back + 23, 9, 7), 28.0, soft)  # canal
        spine = np.minimum(4.0 - np.abs(x), 17 - np.abs(y - back + 47)) - np.where(between > 9, 6, 0)
        _mix(hu, np.minimum(spine, wall - 1), 380.0, soft)
        crossing = np.minimum(4.5 - np.abs(y - back + 14), 42 - np.abs(x)) - np.where(
            (between > 5) | (np.abs(x) < 12), 9, 0
        )
        _mix(hu, crossing, 350.0, soft)
        # ribs run down from the back to the front inside the wall; below the 12th there are none
        slope = z + 0.42 * y + 0.10 * np.abs(x)
        rib = 6.5 - np.abs(slope % 27 - 13.5)
        rib = np.minimum(np.minimum(rib, 4.8 - np.abs(wall - 6.5)), z + 25 - 0.35 * (y + 60))
        rib = np.minimum(rib, np.abs(x) - 0.22 * self.width - np.where(y > 0, 0.2 * self.width, 0))
        _mix(hu, rib, 420 + 90 * grain, soft)
        _mix(hu, rib - 2.2, 170.0, soft)  # marrow

    def _paint(
        self,
        hu: np.ndarray,
        label: np.ndarray,
        name: str,
        part: int,
        depth: np.ndarray,
        where: np.ndarray,
        grain: np.ndarray,
        soft: float,
    ) -> None:
        """Add one part of an organ to the views `hu` and `label`."""
        kind = {"left kidney": "right kidney", "left adrenal gland": "right adrenal gland"}.get(name, name)
        level = self.hu[kind] + 5 * grain
        if kind == "right kidney":
            cortex = self.hu[kind]
            pyramids = np.where(self.early, 0.5 * cortex, 0.93 * cortex)
            level = np.where((depth > 8) & (grain < 0.7), pyramids, cortex) + 4 * grain
        if name == "liver":  # its vessels, brighter in the portal venous phase
            tree = np.abs(np.sin(where[0] / 17 + where[2] / 31) + np.cos(where[1] / 19) + 0.35 * grain)
            level = np.where((tree < 0.12) & (depth > 8), 0.55 * level + 0.45 * self.hu["vessel"], level)
        _mix(hu, depth, level, soft)
        if name == "stomach":
            filled = 180.0 if self.oral_contrast else _FLUID + 10 * grain
            front = where[1] - np.percentile(where[1][depth > 0], 100 * self.full) if (depth > 0).any() else where[1]
            _mix(hu, depth - 5, filled, soft)
            _mix(hu, np.minimum(depth - 5, front), _GAS, soft)
        if name == "duodenum":
            _mix(hu, depth - 5, 150.0 if self.oral_contrast else _FLUID, soft)
        if name == "esophagus":
            _mix(hu, depth - 5.5, -350.0, soft)
        label[depth > 0] = ORGANS[name]
        if kind == "right kidney":  # fat and the pelvis in the middle; not told apart in the label
            hollow = np.minimum(depth - 13, 30.0)
            _mix(hu, hollow, _FAT + 40, soft)


def _mix(hu: np.ndarray, depth: np.ndarray, value: np.ndarray | float, soft: float) -> None:
    """Put tissue of `value` HU where `depth` (mm below its surface) is positive; voxels on the surface get a share."""
    share = np.clip(0.5 + soft * depth, 0, 1)
    hu += share * (value - hu)


def _ellipse(x: np.ndarray, y: np.ndarray, a: np.ndarray | float, b: np.ndarray | float) -> np.ndarray:
    """About the depth (mm) inside a cylinder along z whose section has the half axes `a` and `b`."""
    return (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * np.minimum(a, b)


def _ball(centre: Sequence[float], radii: Sequence[float]) -> _Shape:
    return _Shape(np.asarray([centre], float), np.asarray([radii], float))


def _tube(*points: tuple[float, float, float, float]) -> _Shape:
    """Through x, y, z with radius r each."""
    array = np.asarray(points, float)
    return _Shape(array[:, :3], np.repeat(array[:, 3:], 3, axis=1))


def _atlas(rng: np.random.Generator) -> dict[str, list[_Shape]]:
    """The organs of an average patient, as they are painted: later ones take the place of earlier ones."""
    low = rng.normal(0, 6)  # how low the kidneys lie
    return {
        "liver": [
            _ball((78, -4, 52), (62, 72, 70)),
            _ball((70, 8, 18), (46, 56, 62)),
            _ball((14, 36, 66), (62, 30, 38)),
        ],
        "spleen": [_ball((-98, -42, 54), (27, 42, 50))],
        "stomach": [
            _tube(
                (-58, -6, 84, 30),
                (-66, 20, 56, 31),
                (-58, 44, 28, 25),
                (-28, 54, 10, 21),
                (8, 52, 8, 17),
                (24, 46, 14, 13),
            )
        ],
        "pancreas": [_tube((26, 18, -10, 13), (12, 24, 4, 11), (-18, 24, 14, 9), (-50, 6, 28, 10), (-76, -14, 38, 8))],
        "duodenum": [
            _tube(
                (28, 44, 12, 12),
                (44, 30, 2, 12),
                (46, 10, -26, 12),
                (28, 0, -46, 11),
                (-4, 2, -44, 11),
                (-22, 12, -24, 10),
            )
        ],
        "right kidney": [_ball((60, -48, -14 + low), (27, 25, 54)), _ball((56, -46, -2 + low), (24, 23, 42))],
        "left kidney": [_ball((-62, -50, -2 + low), (27, 25, 56)), _ball((-58, -48, 10 + low), (24, 23, 44))],
        "gallbladder": [_tube((52, 44, 14, 9), (56, 50, -2, 13), (60, 56, -18, 12))],
        "inferior vena cava": [_tube((20, -22, -130, 11), (21, -18, -40, 12), (22, -12, 40, 13), (22, -2, 92, 14))],
        "aorta": [_tube((-8, -28, -130, 9), (-9, -26, -20, 10), (-10, -30, 60, 11), (-14, -36, 130, 12))],
        "esophagus": [_tube((-36, -4, 84, 9), (-20, -12, 94, 9), (-8, -18, 112, 8), (-4, -20, 135, 8))],
        "right adrenal gland": [
            _tube((36, -34, 50, 4), (40, -42, 42, 4.5), (44, -50, 36, 3.5)),
            _tube((40, -40, 42, 4), (32, -46, 36, 3.5)),
        ],
        "left adrenal gland": [
            _tube((-32, -26, 48, 4), (-38, -34, 42, 4.5), (-46, -40, 36, 3.5)),
            _tube((-38, -33, 42, 4), (-32, -42, 36, 3.5)),
        ],
    }
