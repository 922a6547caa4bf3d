"""A study from an Orthanc, and its mask back there, by the commands that a user calls."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import pydicom
import pytest
import requests
from dicomweb_client.web import DICOMwebClient

import tools.prepare
from bundlekit.preparation.dicom_files import read_headers
from bundlekit.preparation.dicomweb import PASSWORD, DicomWeb
from tests.bundlekit.preparation.dicom.conftest import DAY, NAME, SERIES, save, slices, uid
from tests.conftest import Run
from tests.tools.test_prepare import prepare_t1ce

PLUGIN = Path("/usr/share/orthanc/plugins/libOrthancDicomWeb.so")
USER, WORD = "radiology", "a pass wörd"
STUDY, WITHOUT_T1CE = uid("study"), uid("other")


@pytest.fixture(scope="module")
def orthanc(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Address of an Orthanc's DICOMweb, with two studies, one of which has no T1ce; a user is asked for."""
    if shutil.which("Orthanc") is None or not PLUGIN.is_file():
        pytest.skip("needs Orthanc: apt-get install -y --no-install-recommends orthanc orthanc-dicomweb")
    folder = tmp_path_factory.mktemp("orthanc")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    configuration = {
        "StorageDirectory": str(folder / "storage"),
        "IndexDirectory": str(folder / "storage"),
        "HttpPort": port,
        "RemoteAccessAllowed": False,
        "AuthenticationEnabled": True,
        "RegisteredUsers": {USER: WORD},
        "DicomServerEnabled": False,
        "Plugins": [str(PLUGIN)],
        "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
    }
    (folder / "orthanc.json").write_text(json.dumps(configuration))
    images = [image for name in SERIES for image in slices(name)]
    images += [image for name in ("T1", "T2", "FLAIR") for image in slices(name, study="other")]
    files = save(images, folder / "files")
    with (folder / "log").open("w") as log, pytest.MonkeyPatch.context() as patch:
        patch.setenv("NO_PROXY", "127.0.0.1")
        patch.setenv(PASSWORD, WORD)
        process = subprocess.Popen(["Orthanc", str(folder / "orthanc.json")], stdout=log, stderr=log)
        try:
            url = f"http://127.0.0.1:{port}/dicom-web"
            wait_for(url, process, folder / "log")
            client_of(url).store_instances([pydicom.dcmread(file) for file in files])
            yield url
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def wait_for(url: str, process: subprocess.Popen, log: Path) -> None:
    end = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < end:
        try:
            requests.get(url, timeout=5)
            return
        except requests.ConnectionError:
            time.sleep(0.05)
    pytest.fail(f"Orthanc does not answer:\n{log.read_text()[-2000:]}")


def client_of(url: str) -> Any:
    session = requests.Session()
    session.auth = (USER.encode(), WORD.encode())  # type: ignore[assignment]
    return DICOMwebClient(url, session, headers={"Accept": "application/dicom+json"}, chunk_size=2**30)


def seg_series(url: str) -> list[str]:
    found = client_of(url).search_for_series(STUDY, search_filters={"Modality": "SEG"})
    return [row["0020000E"]["Value"][0] for row in found]


def test_the_command_fetches_a_study_and_asks_as_with_a_folder(
    run: Run, environment: dict[str, str], orthanc: str, tmp_path: Path
) -> None:
    environment[PASSWORD] = WORD
    out = tmp_path / "out"
    command = ["-m", "tools", "segment", "brats_resunet", "--dicomweb", orthanc, "--dicomweb_user", USER]
    command += ["--study", WITHOUT_T1CE, "--out", out, "--fill_missing", "True"]
    done = run(*command, status=1)
    assert f"{out / 'dicom'}: 24 files fetched, 0 were there" in done.stdout
    assert "t2_flair" in done.stdout
    assert "give --t1 2 or --t1ce 2" in done.stderr
    sent = {image.SOPInstanceUID: image for name in ("T1", "T2", "FLAIR") for image in slices(name, study="other")}
    fetched = [pydicom.dcmread(file) for file, _ in read_headers(out / "dicom")]
    assert {image.SOPInstanceUID: image for image in fetched} == sent
    assert [path.name for path in out.iterdir()] == ["dicom"]
    assert "0 files fetched, 24 were there" in run(*command, status=1).stdout
    for word in (NAME, DAY, WORD, WITHOUT_T1CE):
        assert word not in done.stdout + done.stderr
    environment[PASSWORD] = "another"
    assert f"answers 401 (Unauthorized) when asked for study {WITHOUT_T1CE}" in run(*command, status=1).stderr


def test_a_study_that_is_not_there_is_told(orthanc: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no study 1\.2\.3") as error:
        tools.prepare.prepare(out=str(tmp_path / "out"), dicomweb=orthanc, dicomweb_user=USER, study="1.2.3")
    assert orthanc in str(error.value)
    with pytest.raises(ValueError, match=r"404[\s\S]*http://HOST:8042/dicom-web"):
        DicomWeb(orthanc.removesuffix("/dicom-web"), USER).fetch(STUDY, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_mask_goes_back_to_the_server(
    orthanc: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Registration and network, which have tests of their own, are left out: each scan is taken as it is."""
    monkeypatch.setattr(tools.prepare, "prepare_case", prepare_one)
    monkeypatch.setattr(tools.prepare, "_infer", segment_one)
    out = tmp_path / "out"
    named = {"dicomweb": orthanc, "dicomweb_user": USER}
    tools.prepare.segment("brats_resunet", out=str(out), study=STUDY, store=True, device="cpu", **named)
    told = capsys.readouterr().out
    assert f"{out / 'x_seg_on_t1ce.dcm'} stored on {orthanc}" in told
    assert WORD not in told
    seg = pydicom.dcmread(out / "x_seg_on_t1ce.dcm")
    assert seg_series(orthanc) == [seg.SeriesInstanceUID]
    back = client_of(orthanc).retrieve_instance(STUDY, seg.SeriesInstanceUID, seg.SOPInstanceUID)
    assert back == seg
    np.testing.assert_array_equal(back.pixel_array, seg.pixel_array)
    assert back.pixel_array.any()
    DicomWeb(orthanc, USER).store(out / "x_seg_on_t1ce.dcm")  # once more
    assert seg_series(orthanc) == [seg.SeriesInstanceUID]
    assert DicomWeb(orthanc, USER).fetch(STUDY, out / "dicom") == (0, 32)  # the mask is no scan
    mask = out / "segmented" / "x_seg.nii.gz"
    tools.prepare.restore(str(out / "prepared"), str(tmp_path / "more"), str(mask), store=True, **named)
    more = pydicom.dcmread(tmp_path / "more" / "x_seg_on_t1ce.dcm")
    assert set(seg_series(orthanc)) == {seg.SeriesInstanceUID, more.SeriesInstanceUID}


def prepare_one(files: dict[str, Any], out: str, *_: object, **__: object) -> dict[str, Any]:
    """In place of `prepare_case`."""
    Path(out).mkdir()
    prepare_t1ce(files["T1ce"], Path(out), Path(out).parent / "mask.nii.gz")
    return {"modalities": {}}


def segment_one(bundle: str, settings: dict[str, Any], given: dict[str, Any], fill_missing: bool) -> None:
    """In place of a bundle's inference."""
    folder = Path(settings["output_dir"])
    folder.mkdir()
    mask = nib.load(folder.parent / "mask.nii.gz")
    nib.save(mask, folder / "x_seg.nii.gz")
    probabilities = np.stack([np.asarray(mask.dataobj) > 0] * 3, axis=-1).astype(np.float32)
    nib.save(nib.Nifti1Image(probabilities, mask.affine), folder / "x_probabilities.nii.gz")
