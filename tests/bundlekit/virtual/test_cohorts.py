"""What every virtual cohort of the BraTS kind has in common: its files, its repeatability, what it refuses."""

import hashlib
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from bundlekit.virtual import brats, ct, metastases, tissue
from bundlekit.virtual.brats import make_case as make_glioma
from bundlekit.virtual.metastases import case_name
from bundlekit.virtual.metastases import make_case as make_metastases

SHAPE = (64, 64, 48)
KINDS = {
    brats: (make_glioma, ("t1", "t1ce", "t2", "flair"), "_", [f"VirtualGlioma_0000{n}" for n in range(3)]),
    metastases: (make_metastases, ("t1n", "t1c", "t2w", "t2f"), "-",
                 [f"BraTS-MET-9000{n}" for n in ("1-000", "2-000", "2-001")]),
}  # fmt: skip


@pytest.fixture(scope="module", params=KINDS, ids=lambda make: make.__name__)
def make(request):
    return request.param


@pytest.fixture(scope="module")
def folders(make, tmp_path_factory):
    return make(str(tmp_path_factory.mktemp("cohort")), cases=3, seed=0, shape=SHAPE)


def digests(folder):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in sorted(Path(folder).iterdir())}


def test_files_look_like_brats(make, folders):
    make_case, scans, joint, names = KINDS[make]
    assert [Path(folder).name for folder in folders] == names
    for index, folder in enumerate(folders):
        name, case = Path(folder).name, make_case(0, index, SHAPE)
        files = {key: f"{name}{joint}{key}.nii.gz" for key in (*scans, "seg")}
        assert {path.name for path in Path(folder).iterdir()} == set(files.values())
        for key, file in files.items():
            image = nib.load(f"{folder}/{file}")
            assert image.shape == SHAPE
            assert image.get_data_dtype() == (np.uint8 if key == "seg" else np.int16)
            assert nib.aff2axcodes(image.affine) == ("L", "P", "S")
            assert (int(image.header["qform_code"]), int(image.header["sform_code"])) == (1, 1)
            np.testing.assert_allclose(image.get_qform(), image.get_sform(), atol=1e-4)
            np.testing.assert_allclose(image.header.get_zooms(), (3.75, 3.75, 155 / 48), rtol=1e-6)
            np.testing.assert_array_equal(np.asanyarray(image.dataobj), case[key])
            head = Path(folder, file).read_bytes()[:8]
            assert (head[3], head[4:8]) == (0, b"\0\0\0\0"), "neither a name nor a time"
    assert not list(Path(folders[0]).parent.glob(".virtual_*"))


def test_same_seed_same_bytes_however_many_follow(make, folders, tmp_path):
    name = Path(folders[0]).name
    make(str(tmp_path), cases=1, seed=0, shape=SHAPE)
    assert digests(tmp_path / name) == digests(folders[0])


def test_cases_and_seeds_differ_and_the_number_of_threads_does_not_matter(make):
    make_case, scans, *_ = KINDS[make]
    shape = (48, 48, 36)
    case, second, other = make_case(0, 0, shape), make_case(0, 1, shape), make_case(1, 0, shape)
    threads = torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        again = make_case(0, 0, shape)
    finally:
        torch.set_num_threads(threads)
    for name, array in case.items():
        np.testing.assert_array_equal(again[name], array)
    for name in (*scans, "seg", "tissue"):
        assert not np.array_equal(case[name], second[name])
        assert not np.array_equal(case[name], other[name])


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"cases": 0}, "cases"),
        ({"cases": 1.5}, "cases"),
        ({"seed": -1}, "seed"),
        ({"shape": (64, 64, 31)}, "shape"),
        ({"shape": (64, 64)}, "shape"),
        ({"shape": 64}, "shape"),
        ({"shape": (64, 64, 100_000)}, "shape"),
        ({"jobs": 0}, "jobs"),
    ],
)
def test_bad_numbers(make, arguments, word, tmp_path):
    with pytest.raises(ValueError, match=f"{word} is .*; expected .*; give"):
        make(str(tmp_path / "new"), **arguments)
    assert not (tmp_path / "new").exists()


def test_out_must_be_a_folder(make, tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for out in (file, file / "below"):
        with pytest.raises(ValueError, match=r"notes.txt.* is not a folder; expected a folder.*; give"):
            make(str(out), cases=1, shape=SHAPE)
    assert file.read_text() == "mine"
    with pytest.raises(ValueError, match="out is empty; expected a folder"):
        make("", cases=1, shape=SHAPE)


@pytest.mark.parametrize("make", [brats, metastases, tissue, ct])
def test_what_is_there_is_never_replaced(make, tmp_path):
    """It may have been corrected since, and the same name may be another case of another seed."""
    name = {brats: "VirtualGlioma_00001", metastases: case_name(7, 1), tissue: "sub-001", ct: "imagesTr"}[make]
    there = tmp_path / "out" / name
    there.mkdir(parents=True)
    if make is ct:
        there = there / "FLARE22_Tr_0002_0000.nii.gz"
        there.touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(ValueError, match=rf"{there.name}: there already"):
        make(str(tmp_path / "out"), cases=2, seed=7, shape=(48, 40, 32))
    assert sorted(tmp_path.rglob("*")) == before, "nothing is made first"
