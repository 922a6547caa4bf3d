"""Compressed voxels are the same as those before."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import SimpleITK as sitk  # noqa: N813
from PIL import Image
from pydicom import Dataset, dcmread
from pydicom.encaps import encapsulate, generate_frames
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from bundlekit.errors import BundleError
from bundlekit.preparation.dicom_choice import choose
from bundlekit.preparation.dicom_series import read_study
from bundlekit.preparation.dicom_volumes import read_voxels
from tests.bundlekit.preparation.dicom.conftest import enhanced, save, slices, voxels


def _jpeg_2000(pixels: np.ndarray) -> bytes:
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "JPEG2000", irreversible=False, no_jp2=True)
    return out.getvalue()


def _lossless_jpeg(pixels: np.ndarray, folder: Path) -> bytes:
    """By GDCM, from a file that it wrote."""
    writer = sitk.ImageFileWriter()
    writer.SetFileName(str(folder / "jpeg.dcm"))
    writer.UseCompressionOn()
    writer.SetCompressor("JPEG")
    writer.Execute(sitk.GetImageFromArray(pixels))
    written = dcmread(folder / "jpeg.dcm")
    assert written.file_meta.TransferSyntaxUID == JPEGLosslessSV1
    return next(generate_frames(written.PixelData, number_of_frames=1))


def _compress(images: list[Dataset], syntax: str, folder: Path) -> None:
    for image in images:
        if syntax in (RLELossless, JPEGLSLossless):
            image.compress(syntax, generate_instance_uid=False)
            continue
        pixels = image.pixel_array
        frames = pixels if pixels.ndim == 3 else pixels[None]
        packed = [_jpeg_2000(one) if syntax == JPEG2000Lossless else _lossless_jpeg(one, folder) for one in frames]
        if syntax == JPEGLosslessSV1:  # which GDCM wrote with 16 bits
            image.BitsStored, image.HighBit = 16, 15
        image.PixelData = encapsulate(packed)
        image["PixelData"].VR = "OB"
        image.file_meta.TransferSyntaxUID = syntax


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda s: s.name
)
@pytest.mark.parametrize("frames", [False, True], ids=["slices", "frames"])
def test_voxels_are_those_before(syntax: str, frames: bool, tmp_path: Path) -> None:
    images = [enhanced("T2")] if frames else slices("T2")
    _compress(images, syntax, tmp_path)
    save(images, tmp_path / "study")
    study = read_study(tmp_path / "study")
    taken = choose(study, {}).taken["T2"].stack
    expected = voxels("T2").transpose(2, 1, 0).astype(np.float32)
    np.testing.assert_array_equal(read_voxels(taken), expected * 2 + np.arange(8) if frames else expected)


@pytest.mark.parametrize(
    "syntax", [RLELossless, JPEGLSLossless, JPEG2000Lossless, JPEGLosslessSV1], ids=lambda s: s.name
)
def test_truncated_voxels_are_refused(syntax: str, tmp_path: Path) -> None:
    images = slices("T2")
    _compress(images, syntax, tmp_path)
    files = save(images, tmp_path / "study")
    files[3].write_bytes(files[3].read_bytes()[:-150])
    taken = choose(read_study(tmp_path / "study"), {}).taken["T2"].stack
    with pytest.raises(BundleError, match=r"IM0003\.dcm[\s\S]*cannot be decoded to their end"):
        read_voxels(taken)
