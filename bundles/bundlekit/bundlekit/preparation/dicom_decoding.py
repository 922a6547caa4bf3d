"""Compressed DICOM frames that pydicom has no decoder for, by the GDCM in SimpleITK.

pydicom decodes RLE itself, JPEG-LS by pyjpegls and JPEG 2000 by Pillow. Lossless JPEG, which most archives use, is left
to packages that are under the GPL or large. This module is a plugin, as pydicom wants it.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import SimpleITK as sitk  # noqa: N813
from pydicom import Dataset, uid
from pydicom.dataset import FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.pixels.decoders import JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder
from pydicom.pixels.decoders.base import DecodeRunner

DECODER_DEPENDENCIES = dict.fromkeys((uid.JPEGExtended12Bit, uid.JPEGLossless, uid.JPEGLosslessSV1), ("SimpleITK",))


@cache
def register_decoder() -> None:
    """Let pydicom know, once."""
    for decoder in (JPEGExtended12BitDecoder, JPEGLosslessDecoder, JPEGLosslessSV1Decoder):
        decoder.add_plugin("simpleitk", (__name__, "decode_frame"))


def is_available(syntax: str) -> bool:
    """Whether this plugin decodes a transfer syntax."""
    return syntax in DECODER_DEPENDENCIES


def decode_frame(source: bytes, runner: DecodeRunner) -> bytes:
    """The voxels of one compressed grey frame, as they are stored: no scale is applied.

    Args:
        source: the frame, compressed.
        runner: of pydicom; tells size and type.

    Raises:
        ValueError: for colours.
    """
    if runner.samples_per_pixel != 1:
        raise ValueError("colours are not decoded")
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = runner.transfer_syntax
    image.file_meta.MediaStorageSOPClassUID = image.SOPClassUID = uid.SecondaryCaptureImageStorage
    image.file_meta.MediaStorageSOPInstanceUID = image.SOPInstanceUID = uid.generate_uid()
    image.Rows, image.Columns = runner.rows, runner.columns
    image.SamplesPerPixel, image.PhotometricInterpretation = 1, "MONOCHROME2"
    image.BitsAllocated, image.BitsStored = runner.bits_allocated, runner.bits_stored
    image.HighBit, image.PixelRepresentation = runner.bits_stored - 1, runner.pixel_representation
    image.PixelData = encapsulate([source])
    image["PixelData"].VR = "OB"
    with TemporaryDirectory() as folder:
        file = Path(folder) / "frame.dcm"
        image.save_as(file, enforce_file_format=True)
        voxels = sitk.GetArrayFromImage(sitk.ReadImage(str(file)))
    kind = f"<{'i' if runner.pixel_representation else 'u'}{runner.bits_allocated // 8}"
    return np.ascontiguousarray(voxels.reshape(runner.rows, runner.columns), kind).tobytes()
