"""The real MONAI Label server with every bundle, driven over REST: `make test-label`.

Not collected by default (its name says no test): it needs the server's own environment.
Networks are tiny and untrained.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import psutil
import pytest
import requests
import SimpleITK as sitk  # noqa: N813 (its usual name)
import torch

from bundlekit.cases.datalist import trained_cases
from bundlekit.virtual import brats, ct, tissue
from tests.conftest import ROOT
from tools.bundles import find_cases_of, names, parse
from tools.convert import to_h5
from tools.label.environment import environment
from tools.pack import pack

DATA = Path(os.environ.get("BRAIN_DATA", ROOT.parent / "shared" / "data"))
GLIOMA, HEAD, TORSO = "VirtualGlioma_00000", "sub-000", "FLARE22_Tr_0001"
METS = "BraTS-MET-00009-000"
BRATS_LABELS = {"necrotic core": 1, "oedema": 2, "3 (not used)": 3, "enhancing tumour": 4}


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True)
class Served:
    """A bundle, what its tiny network is, and a virtual case for it.

    Args:
        settings: as a training records them.
        case: name.
        file: one file of the case, below the studies folder.
        answered: names and values in the order of the values.
        real: pattern of the files of a real case, below the folder of the real data.
        trains: whether it can train on labels from a viewer.
        written: name of the case as the bundle's own run writes it; "": `case`.
    """

    settings: dict[str, Any]
    case: str
    file: str
    answered: dict[str, int]
    real: str = ""
    trains: bool = True
    written: str = ""


CLEANED = {"minimum_core_ml": 0.01, "minimum_enhancing_ml": 0.5, "fill_core": True}  # what inference does to masks
BUNDLES = {
    "brats_resunet": Served(
        {"channels": [4, 8, 16, 32], "patch_size": [32, 32, 32], "after_training": CLEANED},
        GLIOMA, f"glioma/{GLIOMA}/{GLIOMA}_flair.nii.gz", BRATS_LABELS,
        "brats_glioma/BraTS2021_00006/*_[tf]*.nii.gz",
    ),
    "brain_metastasis_attention_unet": Served(
        {"channels": [4, 8, 16], "patch_size": [32, 32, 32]},
        GLIOMA, f"glioma/{GLIOMA}/{GLIOMA}_t2.nii.gz",
        {"non-enhancing tumour core": 1, "surrounding non-enhancing flair hyperintensity": 2, "3 (not used)": 3,
         "enhancing tumour": 4},
        "brats_mets_unlabelled/**/*.nii.gz",
    ),
    "brain_tissue_vnet": Served(
        {"init_filters": 4, "patch_size": [32, 32, 32], "fit": "none", "spacing": [4, 4, 4]},
        HEAD, f"heads/{HEAD}/anat/{HEAD}_T1w.nii.gz", {"csf": 1, "grey matter": 2, "white matter": 3},
        "tissue_t1/1119_SS.nii.gz",
    ),
    "abdomen_ct_vnet": Served(
        {"channels": [4, 8, 16], "patch_size": [32, 32, 32], "spacing": [8.0, 8.0, 8.0]},
        TORSO, f"ct/imagesTr/{TORSO}_0000.nii.gz", {"liver": 1, "kidneys": 2, "spleen": 3},
        "abdomen_ct/example_ct.nii.gz",
    ),
    "brats_unet_h5": Served(
        {"channels": [4, 8, 16], "uniform_shape": [32, 32, 32]},
        "VirtualGlioma_00001", "h5/VirtualGlioma_00001.h5", {"NCR": 1, "ED": 2, "3 (not used)": 3, "ET": 4},
        trains=False,
    ),
    "brain_mask_unet": Served(
        {"channels": [4, 8, 8], "patch_size": [32, 32, 32], "spacing": [4, 4, 4]},
        HEAD, f"heads/{HEAD}/anat/{HEAD}_T1w.nii.gz", {"brain": 1},
        "whole_head_t1/IXI012-HH-1211_T1.nii.gz",
        trains=False, written=f"{HEAD}_T1w",
    ),
}  # fmt: skip
# with which a tiny network gets better within seconds, where one epoch of a high rate is not enough
LEARNS = {
    "brain_tissue_vnet": {"max_epochs": 8},
    "brain_metastasis_attention_unet": {
        "max_epochs": 6, "learning_rate": 0.003, "accumulation_steps": 1, "class_weights": [1.0, 1.0, 1.0, 1.0],
    },
}  # fmt: skip
BRATS_BUNDLES = ("brats_resunet", "brain_metastasis_attention_unet")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Studies of all kinds, one glioma without its FLAIR, and weights of tiny networks."""
    root = tmp_path_factory.mktemp("label")
    brats(str(root / "studies" / "glioma"), cases=4, seed=3, shape=(48, 48, 36))
    tissue(str(root / "heads"), cases=2, seed=3, shape=(48, 48, 36))
    for head in (root / "heads").glob("sub-*"):
        shutil.copytree(head, root / "studies" / "heads" / head.name)
    ct(str(root / "ct"), cases=2, seed=3, shape=(48, 48, 36))
    shutil.copytree(root / "ct" / "imagesTr", root / "studies" / "ct" / "imagesTr")
    to_h5(str(root / "studies" / "h5"), **{"from": str(root / "studies" / "glioma" / "VirtualGlioma_00001")})
    next((root / "studies" / "glioma" / "VirtualGlioma_00003").glob("*_flair.nii.gz")).unlink()
    mets = root / "studies" / "mets" / METS
    mets.mkdir(parents=True)
    for old, new in {"t1": "t1n", "t1ce": "t1c", "t2": "t2w", "flair": "t2f"}.items():
        shutil.copy(root / "studies/glioma/VirtualGlioma_00002" / f"VirtualGlioma_00002_{old}.nii.gz",
                    mets / f"{METS}-{new}.nii.gz")  # fmt: skip
    for name, served in BUNDLES.items():
        write_weights(root / "weights" / name, name, served.settings)
        inputs = root / "inputs" / name
        file = root / "studies" / served.file
        inputs.mkdir(parents=True)
        (inputs / (file.name if file.suffix == ".h5" else "virtual")).symlink_to(
            file if file.suffix == ".h5" else file.parent
        )
        for scan in sorted(DATA.glob(served.real)) if served.real else ():
            (inputs / "real").mkdir(exist_ok=True)
            hidden = root / "studies" / ".real"  # to be named by its path, and in no list of cases
            hidden.mkdir(exist_ok=True)
            if not (hidden / name).exists():
                (hidden / name).symlink_to(inputs / "real")
            small = nib.load(scan).slicer[::3, ::3, ::3]  # type: ignore[attr-defined]  # in seconds, not minutes
            name_there = (
                "FLARE22_Ts_0001_0000.nii" if scan.name == "example_ct.nii.gz" else scan.name.removesuffix(".gz")
            )
            nib.save(small, inputs / "real" / name_there)
    return root


def write_weights(out: Path, name: str, settings: dict[str, Any], seed: int = 0) -> None:
    """A state dict as a training writes it, untrained, and its settings."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "settings.json").write_text(json.dumps(settings))
    parser = parse(name, "inference.yaml", ckpt_dir=str(out))
    torch.manual_seed(seed)
    torch.save(parser.get_parsed_content("network_def").state_dict(), out / "model.pt")


class Server:
    """`python -m tools label`, as a user starts it."""

    def __init__(self, root: Path) -> None:
        self.app, self.port = root / "app", free_port()
        weights = ",".join(f"{name}={root / 'weights' / name}" for name in BUNDLES)
        command = [sys.executable, "-m", "tools", "label", "--studies", str(root / "studies"), "--weights", weights]
        environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [*command, "--bundles", ",".join(BUNDLES), "--app", str(self.app), "--port", str(self.port)],
            cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self.printed = ""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.printed += line
            if line.startswith("Ctrl-C"):
                return
        raise AssertionError(self.printed)

    def call(self, method: str, path: str, **more: Any) -> requests.Response:
        """The answer to a request."""
        return requests.request(method, f"http://127.0.0.1:{self.port}{path}", timeout=240, **more)

    def infer(self, model: str, image: str = "", status: int = 200, output: str = "image", **more: Any) -> bytes:
        """The answer's content."""
        query = {"output": output, **({"image": image} if image else {})}
        answer = self.call("POST", f"/infer/{model}", params=query, **more)
        assert answer.status_code == status, (answer.text[-3000:], self.log()[-3000:])
        return answer.content

    def refusal(self, model: str, image: str = "", status: int = 400, **more: Any) -> str:
        """What the server says about an input that it refuses."""
        return str(json.loads(self.infer(model, image, status, **more))["detail"])

    def log(self) -> str:
        """What the server has logged."""
        return (self.app / "server.log").read_text()

    def stop(self, number: int = signal.SIGINT) -> None:
        """End it as Ctrl-C does, and see that nothing of it is left."""
        family = psutil.Process(self.process.pid).children(recursive=True)
        self.process.send_signal(number)
        assert self.process.wait(timeout=40) == 0
        assert not [process for process in family if process.is_running() and process.status() != "zombie"]


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    running = Server(folder)
    yield running
    if running.process.poll() is None:
        running.stop()


def read(content: bytes, path: Path) -> nib.Nifti1Image:
    path.write_bytes(content)
    return nib.load(path)  # type: ignore[return-value]


@pytest.fixture(scope="module")
def by_bundle(folder: Path) -> Callable[[str, str], nib.Nifti1Image]:
    """The mask of a case that `monai.bundle run inferring` writes with the same weights; one run for each bundle."""

    def mask(name: str, case: str) -> nib.Nifti1Image:
        out = folder / "masks" / name
        if not out.exists():
            config = ROOT / "bundles" / name / "configs" / "inference.yaml"
            command = [sys.executable, "-m", "monai.bundle", "run", "inferring", "--config_file", str(config)]
            command += ["--dataset_dir", str(folder / "inputs" / name), "--ckpt_dir", str(folder / "weights" / name)]
            command += ["--output_dir", str(out), "--num_workers", "0"]
            environment = {**os.environ, "OMP_NUM_THREADS": "1"}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-3000:]
        return nib.load(out / f"{case}_seg.nii.gz")  # type: ignore[return-value]

    return mask


def assert_same(served: nib.Nifti1Image, reference: nib.Nifti1Image) -> None:
    assert served.shape == reference.shape
    assert served.get_data_dtype() == reference.get_data_dtype() == np.uint8
    np.testing.assert_array_equal(served.affine, reference.affine)
    np.testing.assert_array_equal(np.asarray(served.dataobj), np.asarray(reference.dataobj))
    for kind in ("sform_code", "qform_code", "xyzt_units"):
        assert served.header[kind] == reference.header[kind]


def test_table_names_every_bundle() -> None:
    assert sorted(BUNDLES) == names(), "a bundle that is not in the table is not tested"


def test_prints_address_models_and_cases(server: Server) -> None:
    assert f"http://127.0.0.1:{server.port}" in server.printed
    for name, served in BUNDLES.items():
        assert re.search(rf"^  {name} .*\b{next(iter(served.answered))}", server.printed, re.MULTILINE)


@pytest.mark.parametrize("name", BUNDLES)
def test_info_lists_the_bundle_with_its_labels(server: Server, name: str) -> None:
    info = server.call("GET", "/info/").json()
    answered = [label for label in BUNDLES[name].answered if "not used" not in label]
    assert list(info["models"][name]["labels"]) == answered
    assert info["models"][name]["config"]["model_filename"] == ["model.pt"]
    assert (name in info["trainers"]) == (name != "brain_mask_unet"), "label maps of whole heads train it"
    assert {"random", "first", f"{name}_uncertainty"} <= set(info["strategies"])
    assert {"dice", f"{name}_uncertainty"} <= set(info["scoring"])


def test_studies_have_one_entry_a_case(server: Server) -> None:
    objects = server.call("GET", "/datastore/", params={"output": "all"}).json()["objects"]
    expected = {f"VirtualGlioma_0000{i}" for i in range(3)} | {"sub-000", "sub-001", TORSO, "FLARE22_Tr_0002"}
    assert expected <= set(objects)
    whole = [
        case for case in objects if case.startswith("VirtualGlioma") and not case.startswith("VirtualGlioma_00003")
    ]
    assert len(whole) == 3, "not one for each scan"
    assert [case for case in objects if case.startswith("BraTS-MET")] == [METS], "not one for each scan"
    for case, file in ((GLIOMA, f"{GLIOMA}_t1ce.nii.gz"), (METS, f"{METS}-t1c.nii.gz")):
        shown = server.call("GET", "/datastore/image", params={"image": case})
        assert shown.headers["content-disposition"].endswith(f'{file}"')


@pytest.mark.parametrize("name", BUNDLES)
def test_infer_equals_the_bundle_run(
    server: Server, folder: Path, tmp_path: Path, by_bundle: Callable[[str, str], nib.Nifti1Image], name: str
) -> None:
    served = BUNDLES[name]
    reference = by_bundle(name, served.written or served.case)
    assert_same(read(server.infer(name, served.case), tmp_path / "by_name.nii.gz"), reference)
    assert len(np.unique(np.asarray(reference.dataobj))) > 1, "an empty mask would equal any other"
    answer = json.loads(server.infer(name, str(folder / "studies" / served.file), output="json"))
    assert list(answer["label_names"].items()) == list(served.answered.items())


@pytest.mark.parametrize("name", [name for name in BUNDLES if BUNDLES[name].real])
def test_real_case_equals_the_bundle_run(
    server: Server, folder: Path, tmp_path: Path, by_bundle: Callable[[str, str], nib.Nifti1Image], name: str
) -> None:
    real = sorted((folder / "studies" / ".real" / name).glob("*"))
    if not real:
        pytest.skip(f"no {DATA / BUNDLES[name].real} here")
    answer = read(server.infer(name, str(real[0])), tmp_path / "real.nii.gz")
    case = find_cases_of(name)(str(real[0]), labelled=False)[0]["case"]
    assert_same(answer, by_bundle(name, case))


@pytest.mark.parametrize("name", BRATS_BUNDLES)
def test_a_case_may_be_given_in_any_way(server: Server, folder: Path, tmp_path: Path, name: str) -> None:
    case = folder / "studies" / "glioma" / GLIOMA
    expected = server.infer(name, GLIOMA)
    for suffix in ("t1", "t1ce", "t2", "flair"):
        assert server.infer(name, str(case / f"{GLIOMA}_{suffix}.nii.gz")) == expected, suffix
    assert server.infer(name, str(case)) == expected
    scans = [nib.load(case / f"{GLIOMA}_{suffix}.nii.gz") for suffix in ("flair", "t1", "t1ce", "t2")]
    stacked = np.stack([np.asarray(scan.dataobj) for scan in scans], axis=-1)  # type: ignore[attr-defined]
    nib.save(nib.Nifti1Image(stacked, scans[0].affine), tmp_path / "all.nii.gz")  # type: ignore[attr-defined]
    parameters = {"params": json.dumps({"channel_order": [1, 2, 3, 0]})}
    with (tmp_path / "all.nii.gz").open("rb") as file:  # sent, as by a client on another machine
        sent = server.infer(name, files={"file": ("all.nii.gz", file)}, data=parameters)
    one, other = read(sent, tmp_path / "a.nii.gz"), read(expected, tmp_path / "b.nii.gz")
    np.testing.assert_array_equal(np.asarray(one.dataobj), np.asarray(other.dataobj))


def test_slicers_answer_has_the_same_voxels(server: Server, folder: Path, tmp_path: Path) -> None:
    """The plugin asks for .nrrd, and for both parts of the answer."""
    parameters = {"params": json.dumps({"result_extension": ".nrrd", "result_dtype": "uint8"})}
    (tmp_path / "mask.nrrd").write_bytes(server.infer("brats_resunet", GLIOMA, data=parameters))
    mask = sitk.ReadImage(str(tmp_path / "mask.nrrd"))
    expected = read(server.infer("brats_resunet", GLIOMA), tmp_path / "mask.nii.gz")
    np.testing.assert_array_equal(sitk.GetArrayFromImage(mask).T, np.asarray(expected.dataobj))
    scan = sitk.ReadImage(str(folder / "studies" / BUNDLES["brats_resunet"].file))
    np.testing.assert_allclose(mask.GetOrigin(), scan.GetOrigin(), atol=1e-3)
    np.testing.assert_allclose(mask.GetSpacing(), scan.GetSpacing(), atol=1e-4)
    np.testing.assert_allclose(mask.GetDirection(), scan.GetDirection(), atol=1e-5)


def test_bad_input_is_explained_and_the_server_lives_on(server: Server, folder: Path, tmp_path: Path) -> None:
    studies = folder / "studies"
    assert "no model 'spleen'" in server.refusal("spleen", GLIOMA, 404)
    nobody = server.refusal("brats_resunet", "nobody", 404)
    assert "no case 'nobody'" in nobody
    assert GLIOMA in nobody, "the cases that are there"
    assert "brain_tissue_vnet, brain_mask_unet can" in server.refusal("brats_resunet", HEAD, 404)

    missing = studies / "glioma" / "VirtualGlioma_00003"
    for image, status in ((str(missing), 400), (str(next(missing.glob("*_t1.nii.gz"))), 400)):
        assert "VirtualGlioma_00003_flair.nii.gz (FLAIR)" in server.refusal("brats_resunet", image, status)

    with_junk = {"file": ("scan.nii.gz", b"this is a letter, not an image")}
    for name in BUNDLES:
        assert "fix:" in server.refusal(name, files=with_junk)

    bad = shutil.copytree(studies / "glioma" / GLIOMA, studies / ".bad" / GLIOMA)
    cut = bad / f"{GLIOMA}_t2.nii.gz"
    cut.write_bytes(cut.read_bytes()[:-2000])
    assert "cannot be decoded to its end" in server.refusal("brats_resunet", str(bad))
    nib.save(nib.Nifti1Image(np.ones((8, 8, 8), np.int16), np.eye(4)), cut)
    assert "the grid of" in server.refusal("brats_resunet", str(bad))

    assert "no model 'spleen'" in server.call("POST", "/train/spleen", params={"run_sync": True}).json()["detail"]
    server.infer("brats_resunet", GLIOMA)
    assert "Traceback" not in server.log(), "an input that a user can mend is no defect"


def test_case_that_cannot_be_used_is_named(server: Server) -> None:
    """By name, as a viewer asks: a case without its FLAIR is not listed for this bundle, and the server says why."""
    detail = server.refusal("brats_resunet", "VirtualGlioma_00003", 404)
    assert "VirtualGlioma_00003_flair.nii.gz (FLAIR)" in detail


def files_of(*folders: Path) -> dict[str, bytes]:
    """What lies in the folders; not what the server logs."""
    files = (
        file for folder in folders for file in folder.rglob("*") if file.is_file() and "__pycache__" not in str(file)
    )
    return {str(file): file.read_bytes() for file in files if file.suffix != ".log"}


def test_strangers_are_turned_away(server: Server) -> None:
    """Another page in the browser, and another name that was made to lead to this machine."""
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        for method, path in (("GET", "/info/"), ("POST", "/train/brats_resunet"), ("OPTIONS", "/datastore/image")):
            answer = server.call(method, path, headers={"Origin": origin})
            assert answer.status_code == 403, (origin, method, path)
            assert "access-control-allow-origin" not in answer.headers
    pages = [("cross-site", "image", 403), ("same-site", "script", 403), ("cross-site", "document", 200)]
    for site, dest, status in [*pages, ("same-origin", "empty", 200), ("none", "document", 200)]:
        answer = server.call("GET", "/info/", headers={"Sec-Fetch-Site": site, "Sec-Fetch-Dest": dest})
        assert answer.status_code == status, (site, dest)
    for host in ("evil.example", f"evil.example:{server.port}"):
        assert server.call("GET", "/info/", headers={"Host": host}).status_code == 400
    for host in ("127.0.0.1", "localhost"):
        own = f"http://{host}:{server.port}"
        answer = server.call("GET", "/info/", headers={"Origin": own, "Host": f"{host}:{server.port}"})
        assert answer.headers["access-control-allow-origin"] == own


def test_nothing_leaves_its_folder(server: Server, folder: Path, tmp_path: Path) -> None:
    """Values of requests that would become paths, programs or processes."""
    case = folder / "studies" / "glioma" / GLIOMA
    scan, label = case / f"{GLIOMA}_t1.nii.gz", case / f"{GLIOMA}_seg.nii.gz"
    outside = shutil.copytree(case, tmp_path / GLIOMA)
    (tmp_path / "shifted.nii.gz").write_bytes((folder / "studies" / BUNDLES["brain_tissue_vnet"].file).read_bytes())
    image = nib.load(label)
    nib.save(nib.Nifti1Image(np.asarray(image.dataobj), np.eye(4)), tmp_path / "shifted.nii.gz")  # type: ignore[attr-defined]
    script = ("x.py", b"open('pwned', 'w')")
    before = files_of(folder / "studies", server.app, folder / "weights")

    def refused(method: str, path: str, status: int = 400, **more: Any) -> str:
        answer = server.call(method, path, **more)
        assert answer.status_code == status, (method, path, more, answer.text)
        return str(answer.json()["detail"])

    for name in ("../app/main", str(tmp_path / "x"), f"{GLIOMA}/{GLIOMA}_t1", "..", GLIOMA):
        for upload in (script, ("x.nii.gz", scan.read_bytes())):
            refused("PUT", "/datastore/image", params={"image": name}, files={"file": upload})
    assert "no NIfTI" in refused("PUT", "/datastore/image", files={"file": script})
    for path in ("/datastore/image", "/datastore/"):
        assert "leaves alone" in refused("DELETE", path, params={"id": HEAD})
    for tag in ("../../x", str(tmp_path), ".."):
        label_file = {"label": ("x.nii.gz", label.read_bytes())}
        refused("PUT", "/datastore/label", params={"image": GLIOMA, "tag": tag}, files=label_file)
        refused("DELETE", "/datastore/label", params={"id": GLIOMA, "tag": tag})
        refused(
            "POST", "/infer/brats_resunet", params={"image": GLIOMA}, data={"params": json.dumps({"label_tag": tag})}
        )
    for sent in (script, ("x.nii.gz", b"letter"), ("x.nii.gz", (tmp_path / "shifted.nii.gz").read_bytes())):
        refused("PUT", "/datastore/label", params={"image": GLIOMA}, files={"label": sent})
    for path in (str(outside), str(folder / "studies" / ".." / ".." / GLIOMA), "../x", str(server.app / "main.py")):
        assert "sess" not in server.refusal("brats_resunet", path)
        refused("POST", "/infer/brats_resunet", params={"image": GLIOMA}, data={"params": json.dumps({"image": path})})
    for params in ({"model_filename": "../last.pt"}, {"result_extension": "/../x.py"}, {"x": "$1"}, {"_target_": "os"}):
        refused("POST", "/infer/brats_resunet", params={"image": GLIOMA}, data={"params": json.dumps(params)})
    refused("POST", "/infer/brats_resunet", params={"session_id": "../../x"})
    refused("PUT", "/session/", params={"uncompress": "true"}, files={"files": script})
    for body in (
        {"seed": "$__import__('os').system('touch pwned')"}, {"loss": {"_target_": "os.system"}}, {"x": "@y"},
        {"output_dir": str(tmp_path)}, {"imports": ["os"]}, {"max_epochs": 0}, {"batch_size": 0}, {"amp": "false"},
        {"patch_size": [40, 40, 40]}, {"channels": [4, 8]},
    ):  # fmt: skip
        for run_sync in (True, False):  # a process in the background could refuse nothing
            refused("POST", "/train/brats_resunet", params={"run_sync": run_sync}, json=body)
    for path in ("/train/brats_resunet", "/scoring/dice", "/batch/infer/brats_resunet"):
        refused("POST", path, json={"bundle_path": str(tmp_path)})
        refused("POST", path, json={"x": "$1"})
    refused("POST", "/activelearning/random", json={"x": "$1"})
    refused("POST", "/train/nobody", 404)
    for method, path in (("PUT", "/model/brats_resunet"), ("DELETE", "/model/brats_resunet"), ("POST", "/reload"),
                         ("POST", "/infer/wsi_v2/brats_resunet"), ("GET", "/proxy/dicom/wado/x")):  # fmt: skip
        refused(method, path, 404)
    assert files_of(folder / "studies", server.app, folder / "weights") == before


def test_an_image_that_is_sent_is_kept_beside_the_labels(server: Server, folder: Path) -> None:
    scan = folder / "studies" / BUNDLES["brain_tissue_vnet"].file
    sent = server.call(
        "PUT", "/datastore/image", params={"image": "sent"}, files={"file": ("x.nii.gz", scan.read_bytes())}
    )
    assert sent.json() == {"image": "sent"}
    assert server.infer("brain_tissue_vnet", "sent") == server.infer("brain_tissue_vnet", HEAD)
    again = server.call(
        "PUT", "/datastore/image", params={"image": "sent"}, files={"file": ("x.nii.gz", scan.read_bytes())}
    )
    assert again.json() == {"image": "sent"}, "a viewer sends it once for each label"
    image = nib.load(scan)
    drawn = np.zeros(image.shape[:3], np.uint8)
    drawn[2, 2, 2] = 1
    nib.save(nib.Nifti1Image(drawn, image.affine), folder / "drawn.nii.gz")
    label = {"label": ("x.nii.gz", (folder / "drawn.nii.gz").read_bytes())}
    for name, status in (("white matter", 200), ("nobody", 400)):
        params = {"params": json.dumps({"label_info": [{"name": name, "idx": 1}]})}
        saved = server.call("PUT", "/datastore/label", params={"image": "sent"}, files=label, data=params)
        assert saved.status_code == status, saved.text
    assert "brain_tissue_vnet: csf, grey matter, white matter" in saved.json()["detail"].lower()
    assert server.call("DELETE", "/datastore/image", params={"id": "sent"}).status_code == 200
    assert "no case 'sent'" in server.refusal("brain_tissue_vnet", "sent", 404)


def test_saved_labels_get_the_data_sets_values(server: Server, folder: Path, tmp_path: Path) -> None:
    """3D Slicer numbers the segments it saves 1, 2, 3 by their order, with an empty one for each name of the server."""
    source = folder / "studies" / "glioma" / GLIOMA / f"{GLIOMA}_seg.nii.gz"
    truth = nib.load(source)
    values = np.asarray(truth.dataobj)  # type: ignore[attr-defined]
    by_slicer = np.zeros_like(values)
    drawn = {"enhancing tumour": 4, "oedema": 2, "necrotic core": 1}
    shown = [*server.call("GET", "/info/").json()["labels"], "3 (not used)"]
    assert set(drawn) < set(shown)
    segments = [{"name": name, "idx": number} for number, name in enumerate(shown, start=1)]
    for segment in segments:
        by_slicer[values == drawn.get(segment["name"], -1)] = segment["idx"]
    sent = by_slicer + np.float32(1e-4)  # as a slope in the header leaves it
    nib.save(nib.Nifti1Image(sent, truth.affine), tmp_path / "label.nii.gz")  # type: ignore[attr-defined]
    save(server, GLIOMA, tmp_path / "label.nii.gz", {"label_info": segments})
    kept = server.call("GET", "/datastore/label", params={"label": GLIOMA, "tag": "final"}).content
    np.testing.assert_array_equal(np.asarray(read(kept, tmp_path / "kept.nii.gz").dataobj), values)
    info = server.call("GET", "/datastore/", params={"output": "all"}).json()["objects"][GLIOMA]["labels"]["final"]
    assert {part["name"]: part["idx"] for part in info["info"]["label_info"]} == drawn
    segments[shown.index("oedema")]["name"] = "cyst"
    with (tmp_path / "label.nii.gz").open("rb") as label:
        answer = server.call(
            "PUT", "/datastore/label", params={"image": GLIOMA, "tag": "final"},
            files={"label": ("label.nii.gz", label)}, data={"params": json.dumps({"label_info": segments})},
        )  # fmt: skip
    assert answer.status_code == 400
    assert "no bundle has all of the segments cyst, enhancing tumour, necrotic core" in answer.json()["detail"]
    assert server.call("GET", "/datastore/label", params={"label": GLIOMA, "tag": "final"}).content == kept


def save(server: Server, case: str, file: Path, params: dict[str, Any]) -> None:
    with file.open("rb") as label:
        answer = server.call(
            "PUT", "/datastore/label", params={"image": case, "tag": "final"},
            files={"label": (file.name, label)}, data={"params": json.dumps(params)},
        )  # fmt: skip
    assert answer.status_code == 200, answer.text


def labels_of(folder: Path, name: str) -> dict[str, Path]:
    """Two saved labels, from which a bundle trains."""
    if name == "brain_tissue_vnet":
        heads = folder / "studies" / "heads"
        return {case: heads / case / "anat" / f"{case}_T1w.nii.gz" for case in ("sub-000", "sub-001")}
    if name == "abdomen_ct_vnet":
        return {
            case: next((folder / "ct" / "labelsTr").glob(f"{case}*")) for case in ("FLARE22_Tr_0001", "FLARE22_Tr_0002")
        }
    root = folder / "studies" / "glioma"
    return {case: root / case / f"{case}_seg.nii.gz" for case in (GLIOMA, "VirtualGlioma_00001")}


@pytest.mark.parametrize("name", [name for name in BUNDLES if BUNDLES[name].trains])
def test_training_changes_the_copy_alone(server: Server, folder: Path, tmp_path: Path, name: str) -> None:
    for case, file in labels_of(folder, name).items():
        save(
            server,
            case,
            file if name != "brain_tissue_vnet" else tissue_label(file, tmp_path / f"{case}.nii.gz"),
            {"model": name},
        )
    original, served = (
        base / "model.pt" for base in (folder / "weights" / name, server.app / "model" / name / "models")
    )
    before = original.read_bytes()
    assert served.read_bytes() == before
    earlier = server.infer(name, BUNDLES[name].case)
    request = {"max_epochs": 3, "num_workers": 0, "learning_rate": 0.01, "run_id": "", "tracking": "None"}
    request |= {"force_multi_gpu": True, **LEARNS.get(name, {})}  # as on a machine with several GPUs
    answer = server.call("POST", f"/train/{name}", params={"run_sync": True}, json=request)
    assert answer.status_code == 200, answer.text + server.log()[-3000:]
    outcome = answer.json()
    assert outcome["kept"] == "after", outcome
    split = json.loads((served.parent / "training" / "datalist.json").read_text())
    known = trained_cases(served.parent)
    assert {entry["case"] for entry in split["training"]} <= known.keys(), "an evaluation counts them as seen"
    assert not {entry["case"] for entry in split["validation"]} & known.keys()
    (earlier,) = (served.parent / "earlier").iterdir()
    assert (earlier / "model.pt").read_bytes() == before, "to be brought back"
    assert f"--weights {name}={earlier} takes them again" in server.log()
    assert original.read_bytes() == before
    assert not (ROOT / "bundles" / name / "models" / "datalist.json").exists()
    old, new = (torch.load(file, weights_only=True) for file in (original, served))
    assert {k: v.shape for k, v in old.items()} == {k: v.shape for k, v in new.items()}, "the recorded widths are kept"
    learnt = [key for key in old if not re.search("running|num_batches", key)]
    moved = max(float((old[key] - new[key]).abs().max()) for key in learnt)
    assert 0 < moved < 1, "a step or two away from the weights that were served, not from new ones"
    assert server.infer(name, BUNDLES[name].case) != earlier, "the server takes up the new weights"
    recorded = json.loads((served.parent / "settings.json").read_text())
    assert BUNDLES[name].settings.items() <= (recorded | recorded.get("after_training", {})).items()


def test_a_worse_network_is_not_served(server: Server) -> None:
    """After the fine-tuning above; its labels are there."""
    name = "brats_resunet"
    served = server.app / "model" / name / "models" / "model.pt"
    before = served.read_bytes()
    request = {"max_epochs": 1, "num_workers": 0, "learning_rate": 30.0, "pretrained": False}
    for case, file in labels_of(server.app.parent, name).items():
        save(server, case, file, {"model": name})
    outcome = server.call("POST", f"/train/{name}", params={"run_sync": True}, json=request).json()
    assert outcome["kept"] == "before", outcome
    assert outcome["after"] < outcome["before"]
    assert served.read_bytes() == before
    assert f"{outcome['before']:.4f} before, {outcome['after']:.4f} after" in server.log()
    for case, file in labels_of(server.app.parent, name).items():
        save(server, case, file, {"model": "brain_metastasis_attention_unet"})  # as the test before left them


def tissue_label(file: Path, out: Path) -> Path:
    """Three tissues by intensity, in the bundle's own numbers: 1 CSF, 2 GM, 3 WM."""
    scan = nib.load(file)
    voxels = np.asarray(scan.dataobj)  # type: ignore[attr-defined]
    tissues = np.digitize(voxels, [1, *np.quantile(voxels[voxels > 0], [0.3, 0.6])]).astype(np.uint8)
    nib.save(nib.Nifti1Image(tissues, scan.affine), out)  # type: ignore[attr-defined]
    return out


def test_the_stock_app_serves_a_zip(
    folder: Path, tmp_path: Path, by_bundle: Callable[[str, str], nib.Nifti1Image]
) -> None:
    """MONAI Label's own app, a packed bundle unpacked into it (with smaller weights), and nothing of the checkout."""
    name, file = "brain_tissue_vnet", folder / "studies" / BUNDLES["brain_tissue_vnet"].file
    python = environment()
    app = Path(shutil.copytree(python.parents[1] / "monailabel" / "sample-apps" / "monaibundle", tmp_path / "app"))
    (path,) = pack(name, str(tmp_path))
    with zipfile.ZipFile(path) as content:
        content.extractall(app / "model")
    models = app / "model" / name / "models"
    shutil.rmtree(models)
    shutil.copytree(folder / "weights" / name, models)
    shutil.copytree(file.parent, tmp_path / "studies")
    port = free_port()
    command = [python, "-m", "monailabel.main", "start_server", "--app", app, "--studies", tmp_path / "studies"]
    for key, value in {"models": name, "zoo_source": "local", "sam2": "false"}.items():
        command += ["--conf", key, value]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    kept = {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "VIRTUAL_ENV")}
    variables = {**kept, "PATH": f"{python.parent}{os.pathsep}{kept['PATH']}", "OMP_NUM_THREADS": "1"}
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(
            list(map(str, command)), cwd=app, env=variables, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.time() + 180
        while time.time() < deadline and server.poll() is None:
            try:
                info = requests.get(f"{address}/info/", timeout=10).json()
                break
            except requests.ConnectionError:
                time.sleep(0.5)
        assert set(info["models"][name]["labels"]) == {"csf", "grey matter", "white matter"}
        query = {"image": file.name.partition(".")[0], "output": "image"}
        answer = requests.post(f"{address}/infer/{name}", params=query, timeout=240)
        assert answer.status_code == 200, (tmp_path / "log").read_text()[-3000:]
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    served = np.asarray(read(answer.content, tmp_path / "served.nii.gz").dataobj)
    np.testing.assert_array_equal(served, np.asarray(by_bundle(name, HEAD).dataobj))
    assert len(np.unique(served)) > 1, "an empty mask would equal any other"


def test_batch_dice_and_uncertainty(server: Server) -> None:
    answer = server.call("POST", "/batch/infer/brats_resunet", params={"images": "all", "run_sync": True})
    assert answer.status_code == 200
    result = answer.json()
    done = {case for case, one in result.items() if "error" not in one}
    assert done == {METS, *(f"VirtualGlioma_0000{i}" for i in range(3))}
    assert "brats_resunet" in result[HEAD]["error"], "a case of another bundle does not end the batch"

    dice = server.call("POST", "/scoring/dice", params={"run_sync": True}).json()
    assert dice == {}, "the labels were saved for another bundle"
    other = "/batch/infer/brain_metastasis_attention_unet"
    assert server.call("POST", other, params={"images": "all", "run_sync": True}).status_code == 200
    dice = server.call("POST", "/scoring/dice", params={"run_sync": True}).json()
    assert set(dice) == {GLIOMA, "VirtualGlioma_00001"}
    assert all(0 <= value <= 1 for value in dice[GLIOMA].values())
    assert len(dice[GLIOMA]) == 3

    scored = server.call("POST", "/scoring/brats_resunet_uncertainty", params={"run_sync": True}).json()
    assert scored["executed"] >= 1
    sample = server.call("POST", "/activelearning/brats_resunet_uncertainty", json={}).json()
    assert sample["id"] in ("VirtualGlioma_00002", METS), "those that have no saved label, of the same scans"
    assert 0 < sample["brats_resunet_entropy"] <= 1


def test_training_in_the_background_ends_with_the_server(server: Server) -> None:
    """Last: Ctrl-C in the middle of a training leaves no process."""
    name = "brain_metastasis_attention_unet"  # for which the labels of the gliomas were saved last
    task = server.call("POST", f"/train/{name}", json={"max_epochs": 500, "num_workers": 1}).json()
    assert task["status"] in ("SUBMITTED", "RUNNING"), task  # the server's thread may have begun by then
    deadline = time.time() + 60
    while True:
        task = server.call("GET", "/train/").json()
        details = task.get("details") or []
        assert task["status"] in ("SUBMITTED", "RUNNING"), details
        assert time.time() < deadline, details
        if any("Epoch" in line for line in details):
            break
        time.sleep(0.5)
    server.stop(signal.SIGTERM)
