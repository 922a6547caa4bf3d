"""A release: what is in it, the Model Zoo's rules, and bundles as MONAI downloads them."""

from __future__ import annotations

import functools
import hashlib
import http.server
import json
import re
import shutil
import threading
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pyproject_hooks
import pytest
import yaml
from build import ProjectBuilder
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from monai.bundle import verify_metadata

from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, MadeOnce, Run
from tests.tools.conftest import Alone
from tools.bundles import names
from tools.pack import requirements_of
from tools.release import release
from tools.release.hub import model_card, training_data

NAME = "brats_resunet"  # the one that is run
COARSE = options(num_workers=0, overlap=0, patch_size=[24, 24, 24])

# Rules that a bundle is exempt from, by the lists of the Zoo's ci/bundle_custom_data.py, and why.
ZOO_EXEMPT = {"abdomen_ct_vnet": "exclude_verify_preferred_files_list, exclude_verify_torchscript_list: no weights"}
ZOO = """
import torch
from monai.bundle import ConfigParser, ckpt_export, verify_net_in_out
common = {"meta_file": "configs/metadata.json", "config_file": "configs/inference.yaml", "bundle_root": "."}
verify_net_in_out("network_def", **common, **NARROW)
parser = ConfigParser()
parser.read_config("configs/inference.yaml")
network = parser.get_parsed_content("network_def")
if WEIGHTS != "models/model.pt":
    torch.save(network.state_dict(), WEIGHTS)
ckpt_export("network_def", filepath=EXPORTED, ckpt_file=WEIGHTS, **common)
network.load_state_dict(torch.load(WEIGHTS, weights_only=True))
x = torch.rand(1, CHANNELS, 32, 32, 32)
with torch.no_grad():
    torch.testing.assert_close(torch.jit.load(EXPORTED)(x), network.eval()(x))
"""


def metadata_of(folder: Path) -> dict:
    return json.loads((folder / "configs" / "metadata.json").read_text())


def zip_of(folder: Path) -> str:
    return f"{folder.name}_v{metadata_of(folder)['version']}.zip"


def sums(folder: Path) -> dict[str, str]:
    return dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())


def hashes(folder: Path) -> dict[str, str]:
    files = [file for file in folder.rglob("*") if file.is_file()]
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


# --- what is in it ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def released(made_once: MadeOnce) -> Path:
    """A release of one bundle."""
    return made_once("released", lambda to: release(str(to), NAME, url="https://example.org/files/"))


def test_all_that_a_release_has(released: Path, packed: dict[str, Path]) -> None:
    (path,) = released.glob("*.zip")
    assert path.name == zip_of(packed[NAME])
    found = hashes(released)
    assert found.pop("SHA256SUMS")
    assert sums(released) == {name: value for name, value in found.items() if "/" not in name}
    assert json.loads((released / "model_info.json").read_text()) == {
        path.stem: {
            "checksum": hashlib.sha1(path.read_bytes()).hexdigest(),
            "source": f"https://example.org/files/{path.name}",
        }
    }
    assert found.keys() == {
        *(path.name, f"{path.stem}.cdx.json", "model_info.json", f"huggingface/{NAME}/README.md"),
        *(f"huggingface/{NAME}/{file}" for file in hashes(packed[NAME])),
        *(file.name for kind in ("*.whl", "*.tar.gz") for file in released.glob(kind)),
    }


def test_the_same_bytes_again(released: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    again = tmp_path / "again"
    release(str(again), NAME, url="https://example.org/files/")
    assert hashes(again) == hashes(released)
    with pytest.raises(ValueError, match="is not empty; give a new folder"):
        release(str(again), NAME)


def test_the_sbom_is_valid_and_names_what_the_zip_needs(released: Path) -> None:
    (path,) = released.glob("*.cdx.json")
    assert JsonStrictValidator(SchemaVersion.V1_6).validate_str(path.read_text()) is None
    content = json.loads(path.read_text())
    parts = {part["bom-ref"]: part for part in content["components"]}
    pypi = {f"pkg:pypi/{line.replace('==', '@')}" for line in requirements_of(NAME)}
    assert pypi == {reference for reference in parts if reference.startswith("pkg:pypi/")}
    others = {reference.rpartition("@")[0] for reference in parts.keys() - pypi}
    assert others == {"bundlekit", f"{NAME} weights", f"{NAME} lowres weights", "pkg:npm/%40niivue/niivue"}
    whole = content["metadata"]["component"]
    (zipped,) = released.glob("*.zip")
    assert whole["hashes"][0]["content"] == hashlib.sha256(zipped.read_bytes()).hexdigest()
    assert {d["ref"]: set(d.get("dependsOn", ())) for d in content["dependencies"]}[whole["bom-ref"]] == set(parts)


def test_the_sdist_has_all_that_the_wheel_needs(released: Path, tmp_path: Path) -> None:
    (sdist,) = released.glob("*.tar.gz")
    (wheel,) = released.glob("*.whl")
    shutil.unpack_archive(sdist, tmp_path, filter="data")
    source = tmp_path / sdist.name.removesuffix(".tar.gz")
    builder = ProjectBuilder(source, runner=pyproject_hooks.quiet_subprocess_runner)
    again = Path(builder.build("wheel", tmp_path))
    contents = [{i.filename: i.CRC for i in zipfile.ZipFile(file).infolist()} for file in (again, wheel)]
    assert contents[0] == contents[1]
    packages = {name.split("/")[0] for name in contents[0] if "dist-info" not in name}
    assert packages == {"bundlekit", *names()}


@pytest.mark.parametrize("name", names())
def test_the_hub_reads_the_card(name: str, packed: dict[str, Path]) -> None:
    folder = packed[name]
    metadata = metadata_of(folder)
    card = model_card(folder, metadata)
    _, matter, text = card.split("---\n", 2)
    front = yaml.safe_load(matter)
    assert (front["license"], front["library_name"]) == ("apache-2.0", "monai")
    assert {"medical", metadata["network_data_format"]["inputs"]["image"]["modality"].lower()} <= set(front["tags"])
    links = [target for target in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in target]
    assert links
    assert all((folder / target.partition("#")[0]).is_file() for target in links)
    assert text.count("![") == (folder / "docs" / "README.md").read_text().count("![")
    figures = {key: value for key, value in metadata.get("eval_metrics", {}).items() if isinstance(value, float)}
    if not figures:
        assert "model-index" not in front
        return
    (index,) = front["model-index"]
    (result,) = index["results"]
    assert result["dataset"]["name"] == metadata["eval_metrics"]["cases"]
    assert {m["name"].replace(" ", "_"): m["value"] for m in result["metrics"]} == figures
    assert {m["type"] for m in result["metrics"]} == set(front["metrics"])


def test_data_sets_are_those_that_the_weights_come_from() -> None:
    found = {name: training_data((ROOT / "bundles" / name / "docs/data_license.txt").read_text()) for name in names()}
    maps = "Label maps of SynthSeg's training set"
    assert found == {
        "abdomen_ct_vnet": [],
        "brain_mask_unet": [maps],
        "brain_metastasis_attention_unet": ["BraTS 2021", "BraTS 2017 and 2018", maps],
        "brain_tissue_vnet": [maps],
        "brats_resunet": ["BraTS 2021", maps, "BraTS 2017 and 2018"],
        "brats_unet_h5": ["BraTS 2021", maps, "BraTS 2017 and 2018"],
    }
    for name, sets in found.items():
        trained = ROOT / "bundles" / name / "models" / "trained_on.json"
        years = {case[:7] for case in json.loads(trained.read_text())} if trained.is_file() else set()
        assert ("BraTS20" in years, "Brats17" in years, "Brats18" in years) == (
            "BraTS 2021" in sets,
            *["BraTS 2017 and 2018" in sets] * 2,
        )


# --- the Model Zoo ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names())
def test_the_model_zoos_checks_pass(
    name: str, packed: dict[str, Path], zips: Path, alone: Alone, tmp_path: Path
) -> None:
    """The rules of its ci/verify_bundle.py: files, version, metadata, network, TorchScript by scripting."""
    folder = packed[name]
    metadata = metadata_of(folder)
    assert (zips / zip_of(folder)).is_file()
    for file in ("LICENSE", "configs/metadata.json", "configs/inference.json"):
        assert (folder / file).is_file()
    shipped = (folder / "models" / "model.pt").is_file()
    assert shipped or name in ZOO_EXEMPT
    assert metadata["changelog"][metadata["version"]]
    schema = shutil.copy(ROOT / "tests" / "metadata_schema.json", tmp_path)
    verify_metadata(meta_file=str(folder / "configs" / "metadata.json"), filepath=schema)
    values = {
        "NARROW": BUNDLES[name].narrow,
        "WEIGHTS": "models/model.pt" if shipped else str(tmp_path / "fake.pt"),
        "EXPORTED": str(tmp_path / "verify_model.ts"),
        "CHANNELS": metadata["network_data_format"]["inputs"]["image"]["num_channels"],
    }
    code = "".join(f"{key} = {value!r}\n" for key, value in values.items()) + ZOO
    done = alone("-c", code, of=[name], cwd=folder)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]


# --- as MONAI downloads it --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def server(zips: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SimpleNamespace]:
    """A file server on loopback: its `folder` with the zips, its `url`."""
    folder = tmp_path_factory.mktemp("served")
    for path in zips.glob("*.zip"):
        (folder / path.name).symlink_to(path)

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(folder))) as serving:
        threading.Thread(target=serving.serve_forever, daemon=True).start()
        yield SimpleNamespace(folder=folder, url=f"http://127.0.0.1:{serving.server_port}")
        serving.shutdown()


@pytest.fixture
def download(server: SimpleNamespace, run: Run, tmp_path: Path) -> Callable[[str, str], Path]:
    """MONAI's download of a zip: the bundle's folder, in `tmp_path`."""

    def call(name: str, file: str) -> Path:
        where = options(name=name, url=f"{server.url}/{file}", bundle_dir=tmp_path, progress=False)
        run("-m", "monai.bundle", "download", *where)
        return tmp_path / name

    return call


@pytest.mark.parametrize("name", [name for name in names() if name != NAME])
def test_every_zip_can_be_downloaded(name: str, packed: dict[str, Path], download: Callable[..., Path]) -> None:
    folder = download(name, zip_of(packed[name]))
    assert hashes(folder) == hashes(packed[name])


def versions_told(alone: Alone, folder: Path) -> str:
    code = f"import logging, {NAME}, bundlekit.version; logging.basicConfig(level='INFO')"
    return alone("-c", f"{code}; bundlekit.version.tell_versions()", of=[NAME], cwd=folder).stderr


def test_a_downloaded_bundle_runs_and_notices_another_version(
    packed: dict[str, Path], server: SimpleNamespace, download: Callable[..., Path], alone: Alone, cohort: Path,
    tmp_path: Path,
) -> None:  # fmt: skip
    file, version = zip_of(packed[NAME]), metadata_of(packed[NAME])["version"]
    folder = download(NAME, file)
    case = sorted(path for path in cohort.iterdir() if path.is_dir())[0]
    command = ["monai.bundle", "run", "inferring", "--config_file", "configs/inference.yaml", *COARSE]
    done = alone(*command, *options(dataset_dir=case, output_dir=tmp_path / "out"), of=[NAME], cwd=folder)
    assert done.returncode == 0, done.stderr[-6000:]
    assert (tmp_path / "out" / f"{case.name}_seg.nii.gz").is_file()
    assert re.search(rf"{NAME} {re.escape(version)} with bundlekit [\d.]+, in {re.escape(str(folder))}\n", done.stderr)
    assert "WARNING" not in versions_told(alone, folder)

    newer = server.folder / f"{NAME}_v99.0.0.zip"
    with zipfile.ZipFile(newer, "w") as content:
        content.writestr(f"{NAME}/configs/metadata.json", json.dumps({"version": "99.0.0"}))
    (tmp_path / f"{NAME}.zip").unlink()  # which MONAI would keep, and download nothing
    download(NAME, newer.name)  # MONAI keeps the folder
    told = versions_told(alone, folder)
    warning = f"{tmp_path / f'{NAME}.zip'} holds version 99.0.0, but the folder {folder} is still version {version}: "
    assert warning in told
    assert "Move the folder away" in told

    (folder / NAME / "of_the_version_before.py").touch()
    (tmp_path / f"{NAME}.zip").unlink()
    told = versions_told(alone, folder)
    assert f"{folder}: 1 Python files are not of version {version}, such as {NAME}/of_the_version_before.py" in told


# --- as pip installs it -----------------------------------------------------------------------------------------------


def test_an_installed_wheel_runs_a_zip_from_its_root_and_by_its_folder_from_elsewhere(
    released: Path, packed: dict[str, Path], alone: Alone, tmp_path: Path
) -> None:
    site, folder = tmp_path / "site", packed[NAME]
    (wheel,) = released.glob("*.whl")
    shutil.unpack_archive(wheel, site, "zip")
    installed = {"of": [NAME], "path": [site]}
    done = alone("-c", f"import bundlekit, {NAME}; print(bundlekit.__file__, {NAME}.__file__)", cwd=folder, **installed)
    assert done.stdout.split() == [f"{folder}/bundlekit/__init__.py", f"{folder}/{NAME}/__init__.py"]

    config = str(folder / "configs" / "inference.yaml")
    code = f"from monai.bundle import ConfigParser as C; p = C(C.load_config_file({config!r}))"
    done = alone("-c", f"{code}; p.get_parsed_content('bundle_root')", cwd=tmp_path, **installed)
    assert f"{site / NAME} has no configs and weights beside it: it was installed without them." in done.stderr
    code = f"{code}; p['bundle_root'] = {str(folder)!r}; print(p.get_parsed_content('network_def').channels)"
    done = alone("-c", code, cwd=tmp_path, **installed)
    assert done.stdout == "[16, 32, 64, 128, 256]\n", done.stderr[-3000:]  # of the shipped weights


# --- versions ---------------------------------------------------------------------------------------------------------


def numbers(version: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", version)]


def test_versions_and_changelogs_agree() -> None:
    from bundlekit.version import __version__

    text = (ROOT / "CHANGELOG.md").read_text()
    headings = re.findall(r"^## \[(\d+\.\d+\.[\dx]+)\] - (unreleased|\d{4}-\d\d-\d\d)$", text, re.MULTILINE)
    versions = [version for version, _ in headings]
    assert len(versions) == text.count("\n## ")
    assert versions == sorted(versions, key=numbers, reverse=True)
    assert versions[0] == __version__
    assert "unreleased" not in dict(headings[1:]).values()
    assert f'\nversion = "{__version__}"\n' in (ROOT / "pyproject.toml").read_text()
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
    for name in names():
        metadata = metadata_of(ROOT / "bundles" / name)
        versions = list(metadata["changelog"])
        assert versions[0] == metadata["version"], name
        assert versions == sorted(versions, key=numbers, reverse=True), name
        assert all(metadata["changelog"].values()), name
