"""Packed bundles: what is in them, and that they run on their own with no package but those they name."""

from __future__ import annotations

import ast
import hashlib
import json
import os
import re
import shutil
import subprocess
import zipfile
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from monai.bundle import ConfigParser
from packaging.utils import canonicalize_name

from tests.bundles import BUNDLES, options
from tests.conftest import ROOT, Run, bundle_run, training
from tests.tools.conftest import Alone, environment_of
from tools.bundles import KIT, names
from tools.pack import pack, requirements_of

# what the command line of MONAI and Ignite's progress bar import by themselves
BY_LIBRARIES = {"fire", "tqdm", "openvino"}  # the last by our own, when it is asked for
CORE = {"torch", "monai", "numpy"}

SHIPPED = "brain_tissue_vnet"  # what comes with it is computed here; the scores of all are in tests/test_shipped.py
GRID = ("patch_size", "spacing", "uniform_shape")

CHECK = """
import importlib.util
from monai.bundle import ConfigWorkflow
import bundlekit, NAME
print("bundlekit at", bundlekit.__file__)
assert not importlib.util.find_spec("tools")
for config, kind in (("train.json", "train"), ("inference.json", "infer")):
    workflow = ConfigWorkflow(f"configs/{config}", workflow_type=kind, meta_file="configs/metadata.json",
                              logging_file=False, output_dir=OUT, ckpt_dir=OUT)
    workflow.initialize()
    assert workflow.check_properties() == [], (config, workflow.check_properties())
"""


def test_the_same_bytes_twice_and_no_file_too_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (first,) = pack("brats_unet_h5", str(tmp_path / "a"))
    monkeypatch.setattr(os, "umask", lambda mask: 0o077)
    (second,) = pack("brats_unet_h5", str(tmp_path / "b"))
    content = Path(first).read_bytes()
    assert content == Path(second).read_bytes()
    version = json.loads((ROOT / "bundles/brats_unet_h5/configs/metadata.json").read_text())["version"]
    assert Path(first).name == f"brats_unet_h5_v{version}.zip"
    assert f"SHA-256 {hashlib.sha256(content).hexdigest()}" in capsys.readouterr().out
    with zipfile.ZipFile(first) as found:
        times = [entry.date_time for entry in found.infolist()]
    assert {time[:3] for time in times} == {(1980, 1, 1)}
    assert len(set(times)) > 0.9 * len(times), "unzip sets them: of one time, Python took modules for unchanged"


@pytest.mark.parametrize("name", names())
def test_it_holds_the_bundle_and_what_it_needs(name: str, packed: dict[str, Path]) -> None:
    folder, source = packed[name], ROOT / "bundles" / name
    there = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard", "."], cwd=source, text=True,
                            capture_output=True, check=False).stdout.split()  # fmt: skip
    # without the data beside its modules `--report True` and the check of modalities fail
    parts = [file for file in KIT.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    kit = {f"bundlekit/{file.relative_to(KIT).as_posix()}" for file in parts}
    twins = {path.removesuffix(".yaml") + ".json" for path in there if path.endswith(".yaml")}
    made = {"SHA256SUMS", "requirements.txt", "docs/results.md", *twins}
    made |= {f"docs/results_{name}.png" for name in ("view", "report")}
    if listed:  # in a checkout
        assert there == {*listed, *kit, *made}
        same = [path for path in listed if not path.endswith(".md")]  # whose links change
        assert all((folder / path).read_bytes() == (source / path).read_bytes() for path in same)
    assert not [path for path in there if re.search(r"eval/|last\.pt|datalist\.json|__pycache__|\.pyc|(^|/)\.", path)]
    sums = dict(reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines())
    assert sums == {p: hashlib.sha256((folder / p).read_bytes()).hexdigest() for p in there - {"SHA256SUMS"}}
    for twin in twins:
        yaml, other = (ConfigParser.load_config_file(folder / f) for f in (twin.replace(".json", ".yaml"), twin))
        assert yaml == other
    assert (folder / "requirements.txt").read_text().split() == requirements_of(name)


@pytest.mark.parametrize("name", names())
def test_links_of_its_texts_lead_to_what_it_holds(name: str, packed: dict[str, Path]) -> None:
    folder = packed[name]
    texts = sorted(folder.rglob("*.md"))
    assert folder / "docs/results.md" in texts
    for text in texts:
        for words, target in re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", text.read_text()):
            file, _, anchor = target.partition("#")
            there = (text.parent / file).resolve() if file else text
            assert "://" in target or there.is_file(), (text.name, words, target)
            if anchor and "://" not in target and there.suffix == ".md":
                headings = re.findall(r"^#+ (.*)", there.read_text(), re.MULTILINE)
                assert anchor in [re.sub(r"[^\w -]", "", h.lower()).replace(" ", "-") for h in headings], target
        origin = ROOT / "docs" if text.name == "results.md" else ROOT / "bundles" / name / "docs"
        before, now = ((where / text.name).read_text().splitlines() for where in (origin, text.parent))
        assert len(before) == len(now)
        assert [
            line for line, kept in zip(before, now, strict=True) if line != kept and not set("[]") & set(line)
        ] == []
    assert "](results.md#what-should-be-looked-at)" in (folder / "docs/README.md").read_text()


def modules_in(file: Path, name: str) -> Iterator[str]:
    """What a module imports when it is imported, by full name."""
    package = name.split(".") if file.name == "__init__.py" else name.split(".")[:-1]
    for node in ast.parse(file.read_text()).body:
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else []
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def libraries_of(folder: Path, name: str) -> set[str]:
    """Packages that train, evaluate and inference of a bundle import, itself or through bundlekit."""
    text = "\n".join((folder / "configs" / f"{c}.yaml").read_text() for c in ("train", "evaluate", "inference"))
    text = re.sub("#.*", "", text)
    wanted = re.findall(rf"_target_: ([\w.]+)|\$import ([\w.]+)|\b((?:bundlekit|{name})\.[\w.]+)", text)
    left = [part for parts in wanted for part in parts if part]
    left += [f"{module}.{part}" for module, part in re.findall(r"\$from ([\w.]+) import (\w+)", text)]
    left += [f"{name}.{file.stem}" for file in (folder / name).glob("*.py")]
    seen: set[str] = set()
    found = {"torchio", "SimpleITK"} if "TorchIOd" in text else set()  # MONAI wraps the one; N4 is in an overlay
    while left:
        module = left.pop()
        top = module.split(".")[0]
        if top not in ("bundlekit", name):
            found.add(top)
            continue
        for end in range(1, len(module.split(".")) + 1):  # the packages that it lies in are imported before it
            part = ".".join(module.split(".")[:end])
            path = folder / part.replace(".", "/")
            file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
            if part not in seen and file.is_file():
                seen.add(part)
                left += modules_in(file, part)
    return found


@pytest.mark.parametrize("name", names())
def test_metadata_names_what_is_imported_and_nothing_else(name: str, packed: dict[str, Path]) -> None:
    distributions = metadata.packages_distributions()
    imported = {
        canonicalize_name(distributions[module][0])
        for module in libraries_of(packed[name], name)
        if module in distributions
    }
    content = json.loads((packed[name] / "configs" / "metadata.json").read_text())
    assert set(content["required_packages_version"]) == (imported | BY_LIBRARIES) - CORE


@pytest.mark.parametrize("name", names())
def test_it_runs_alone(
    name: str, packed: dict[str, Path], data_of, run: Run, alone: Alone, environment: dict[str, str], tmp_path: Path
) -> None:
    """Properties, an epoch and inference from the zip's root; the mask is that of the checkout.

    The properties are those of the JSON twins: tests/test_configs.py looks at the YAML files. The weights are those of
    the epoch, for one bundle those that it comes with. The checkout finds the network that the zip has converted
    for OpenVINO.
    """
    folder, cases = packed[name], data_of(name)
    out = tmp_path / "trained"
    weights = folder / "models" if name == SHIPPED else out
    patterns = {"brats_unet_h5": "*.h5", "brain_tissue_vnet": "*_T1w.nii.gz"}
    one = sorted(cases.rglob(patterns.get(name, "*.nii.gz")))[0]
    coarse = {key: value for key, value in BUNDLES[name].small.items() if key in GRID}  # of its shipped weights
    shared = options(dataset_dir=one, ckpt_dir=weights, num_workers=0, overlap=0, **coarse)
    train = ["monai.bundle", "run", "run", "--config_file", "configs/train.yaml"]
    train += training(name, cases, out, epochs=1, patches_per_case=1)
    infer = ["monai.bundle", "run", "run", "--config_file", "configs/inference.json", *shared]
    infer += ["--output_dir", str(tmp_path / "alone")]
    check = CHECK.replace("NAME", name).replace("OUT", repr(str(tmp_path / "checked")))
    for command in (["-c", check], train, infer):
        done = alone(*command, of=[name], cwd=folder, XDG_CACHE_HOME=environment["XDG_CACHE_HOME"])
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-6000:]
        assert command[0] != "-c" or f"bundlekit at {folder / 'bundlekit'}" in done.stdout
    assert {"model.pt", "last.pt"} <= {file.name for file in out.iterdir()}

    run(*bundle_run("run", "inference.yaml", bundle=name), *shared,
        "--output_dir", tmp_path / "checkout")  # fmt: skip
    (mask,) = (tmp_path / "alone").glob("*_seg.nii.gz")
    found, expected = nib.load(mask), nib.load(tmp_path / "checkout" / mask.name)
    np.testing.assert_array_equal(np.asarray(found.dataobj), np.asarray(expected.dataobj))
    np.testing.assert_array_equal(found.affine, expected.affine)


def test_only_named_packages_can_be_imported(tmp_path: Path) -> None:
    python = environment_of(tmp_path / "venv", ["numpy"])
    for module, status in (("numpy", 0), ("nibabel", 1), ("bundlekit", 1), ("tools", 1)):
        clean = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
        command = [str(python), "-c", f"import {module}"]
        done = subprocess.run(command, cwd=tmp_path, env=clean, capture_output=True, check=False)
        assert done.returncode == status, module


def other_release(folder: Path) -> None:
    """Let a packed bundle's bundlekit be of the next minor version."""
    file = folder / "bundlekit" / "version.py"
    major, minor, patch = re.findall(r"\d+", file.read_text().partition("__version__ = ")[2])[:3]
    file.write_text(file.read_text().replace(f'"{major}.{minor}.{patch}"', f'"{major}.{int(minor) + 1}.0"'))


def test_zips_of_two_releases_refuse_each_other(
    packed: dict[str, Path], cohort: Path, alone: Alone, tmp_path: Path
) -> None:
    first = packed["brain_tissue_vnet"]
    second = Path(shutil.copytree(packed["brats_resunet"], tmp_path / "brats_resunet"))
    packed_package = packed["brats_resunet"] / "brats_resunet" / "__init__.py"
    together = f"import brain_tissue_vnet, bundlekit; bundlekit.require({str(packed_package)!r}); print('together')"
    other_release(second)
    refusal = (
        rf"brats_resunet \({re.escape(str(second))}\) came with bundlekit [\d.]+, but this process has loaded "
        rf"bundlekit [\d.]+ of brain_tissue_vnet \({re.escape(str(first))}\). Run each in a process of its own"
    )
    both = {"of": ["brain_tissue_vnet", "brats_resunet"], "path": [first, second]}
    done = alone("-c", f"{together}; import brats_resunet", cwd=cohort, **both)
    assert done.returncode == 1
    assert done.stdout == "together\n", "of one release they are"
    assert re.search(f"BundleError: {refusal}", done.stderr)
    config = str(second / "configs" / "inference.yaml")  # MONAI imports lazily, and wraps what goes wrong
    command = ["monai.bundle", "run", "--config_file", config, "--dataset_dir", cohort]
    done = alone(*command, cwd=first, **both)
    assert done.returncode == 1
    assert re.search(f"\nERROR: {refusal}", done.stderr), done.stderr
    assert "Traceback" not in done.stderr


def test_a_copied_folder_says_in_one_line_what_is_missing(alone: Alone, tmp_path: Path) -> None:
    source = ROOT / "bundles" / "brats_resunet"
    for part in ("configs", "brats_resunet"):
        shutil.copytree(source / part, tmp_path / "copied" / part)
    command = ["monai.bundle", "run", "--config_file", "configs/inference.yaml"]
    done = alone(*command, of=["brats_resunet"], cwd=tmp_path / "copied")
    assert done.returncode == 1
    line = done.stderr.strip().splitlines()[-1]
    assert line == "brats_resunet needs bundlekit: install the project, or take the zip of `python -m tools pack`."
    assert "Traceback" not in done.stderr
