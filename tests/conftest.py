"""What all tests share: the repository's root, virtual cases made once, and commands run as a user runs them."""

from __future__ import annotations

import functools
import gc
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from filelock import FileLock

from tests.bundles import BUNDLES, options
from tests.forked_commands import ForkedCommands

# MONAI's reader of configs is derived from it when MONAI is imported: seven times as fast, where it was built
yaml.SafeLoader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # type: ignore[misc]

# torch and MONAI are imported where they are needed: pytest's first process, which only starts the others, is spared
ROOT = Path(__file__).resolve().parents[1]

COMMANDS = ForkedCommands()

Run = Callable[..., "subprocess.CompletedProcess[str]"]
MadeOnce = Callable[[str, Callable[[Path], object]], Path]


def pytest_configure(config: pytest.Config) -> None:
    """A warning from a bundle's own code is an error."""
    for name in BUNDLES:
        config.addinivalue_line("filterwarnings", f"error:::{name}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no process waits for another at the end."""
    longest = [
        *("test_cv.py", "test_pack.py", "test_shipped.py", "test_running.py", "test_prepare.py", "test_commands.py"),
        *("test_bundles.py", "test_registration.py", "test_runtimes.py", "test_pages.py"),
    ]
    items.sort(key=lambda item: [*longest, item.path.name].index(item.path.name))


def pytest_collection_finish() -> None:
    """What is imported by now stays: no collection of garbage has to look through it."""
    gc.freeze()


@pytest.fixture(scope="session")
def made_once(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> MadeOnce:
    """Have a folder made by whichever test process asks first; for all of them, and read-only by convention."""
    base = tmp_path_factory.getbasetemp()
    base = base if worker_id == "master" else base.parent

    def folder(name: str, make: Callable[[Path], object]) -> Path:
        with FileLock(base / f"{name}.lock"):
            if not (base / name).is_dir():
                make(base / f"{name}.part")
                (base / f"{name}.part").rename(base / name)
        return base / name

    return folder


@pytest.fixture(scope="session", autouse=True)
def templates_made_once(made_once: MadeOnce) -> Iterator[None]:
    """Each smoothing of the ICBM152 template takes seconds: it is read from where the first test process has put it."""
    import torch

    from bundlekit.virtual import anatomy

    compute = anatomy._templates

    @functools.cache
    def maps(sigma_mm: float, label_map: str | None = None) -> torch.Tensor:
        if label_map is not None:
            return compute(sigma_mm, os.path.realpath(label_map))  # of one map by several names once
        folder = made_once(f"template_{sigma_mm}", lambda to: keep(to, compute.__wrapped__(sigma_mm)))
        return torch.load(folder / "maps.pt", mmap=True)

    def keep(to: Path, found: torch.Tensor) -> None:
        to.mkdir()
        torch.save(found, to / "maps.pt")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(anatomy, "_templates", maps)
        yield


@pytest.fixture(scope="session")
def cohort(made_once: MadeOnce) -> Path:
    """Five virtual gliomas of 48x48x36 voxels."""
    return made_once("cohort", lambda to: virtual("brats")(str(to), cases=5, seed=3, shape=(48, 48, 36)))


@pytest.fixture(scope="session")
def heads(made_once: MadeOnce) -> Path:
    """Five virtual healthy heads of 48x48x36 voxels of 5 x 5 x 4.3 mm."""
    return made_once("heads", lambda to: virtual("tissue")(str(to), cases=5, seed=3, shape=(48, 48, 36)))


@pytest.fixture(scope="session", name="metastases")
def metastasis_cohort(made_once: MadeOnce) -> Path:
    """Five virtual cases of metastases of 48x48x36 voxels."""
    return made_once("metastases", lambda to: virtual("metastases")(str(to), cases=5, seed=3, shape=(48, 48, 36)))


@pytest.fixture(scope="session")
def h5_cohort(made_once: MadeOnce, cohort: Path) -> Path:
    """The five virtual gliomas in HDF5."""
    return made_once("h5_cohort", lambda to: converted(str(to), **{"from": str(cohort)}))


@pytest.fixture(scope="session")
def abdomens(made_once: MadeOnce) -> Path:
    """Five virtual CTs of 48x40x32 voxels."""
    return made_once("abdomens", lambda to: virtual("ct")(str(to), cases=5, seed=3, shape=(48, 40, 32)))


@pytest.fixture(scope="session")
def data_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    """Virtual cases for a bundle."""
    return lambda bundle: request.getfixturevalue(BUNDLES[bundle].data)


@pytest.fixture(scope="session")
def trained(made_once: MadeOnce, data_of: Callable[[str], Path]) -> Callable[[str], Path]:
    """What the training of a bundle leaves in its folder, what it prints in `log.txt`; run from an empty folder."""

    def train(bundle: str, to: Path) -> None:
        to.mkdir()
        away = to.with_suffix(".away")
        away.mkdir()
        command = [*bundle_run("training", "train.yaml", bundle=bundle), *training(bundle, data_of(bundle), to)]
        done = COMMANDS.run(command[1:], str(away), environment_with(to.with_suffix(".cache")), timeout=300)
        assert done.returncode == 0, printed(done)[-6000:]
        assert not list(away.iterdir()), "nothing is written to the working directory"
        (to / "log.txt").write_text(printed(done))

    return lambda bundle: made_once(f"trained_{bundle}", lambda to: train(bundle, to))


@pytest.fixture
def cases(cohort: Path, tmp_path: Path) -> Path:
    """A copy of the cohort that a test may spoil."""
    return Path(shutil.copytree(cohort, tmp_path / "cases"))


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """Environment of a command: its own cache folder, one thread."""
    return environment_with(tmp_path / "cache")


@pytest.fixture
def run(environment: dict[str, str]) -> Run:
    """Run `python ...` to its end, by default from the repository's root; check the exit status where one is given."""

    def call(
        *arguments: str | Path, status: int | None = 0, cwd: Path = ROOT, kill_at: Path | str = ""
    ) -> subprocess.CompletedProcess[str]:
        command = [str(argument) for argument in arguments]
        if command[0] == "-c" or command[1] in ("monai.bundle", "tools", "torch.distributed.run"):
            command = command if command[0] == "-c" else command[1:]
            done = COMMANDS.run(command, str(cwd), environment, timeout=300, kill_at=str(kill_at))
        else:
            done = subprocess.run(
                [sys.executable, *command],
                cwd=cwd,
                env=environment,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
        assert status is None or done.returncode == status, done.stdout[-3000:] + done.stderr[-6000:]
        return done

    return call


def assert_equal(got: Any, expected: Any) -> None:
    """Bit for bit, however deeply the two are nested."""
    assert type(got) is type(expected)
    if isinstance(expected, dict):
        assert got.keys() == expected.keys()
        for key in expected:
            assert_equal(got[key], expected[key])
    elif isinstance(expected, (list, tuple)):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            assert_equal(one, other)
    elif hasattr(expected, "equal"):  # a tensor
        assert expected.equal(got)
    else:
        assert got == expected


def bundle_run(run_id: str, *configs: str, bundle: str = "brats_resunet") -> list[str]:
    """Arguments of `python` for a run of a bundle's configs."""
    files = [str(ROOT / "bundles" / bundle / "configs" / name) for name in configs]
    one = files[0] if len(files) == 1 else str(files)
    return ["-m", "monai.bundle", "run", run_id, "--config_file", one]


def training(bundle: str, data: Path, out: Path, **more: Any) -> list[str]:
    """Arguments of a training that takes seconds."""
    row = BUNDLES[bundle]
    where = {"dataset_dir": data / row.maps, "ckpt_dir": out, "output_dir": out, "num_workers": 0}
    where["bf16"] = False  # the same numbers on every machine
    return options(**{**where, **row.small, **row.training, **more})


def config(bundle: str, name: str) -> dict[str, Any]:
    """A config file as it is written."""
    return content_of(ROOT / "bundles" / bundle / "configs" / f"{name}.yaml")


def content_of(file: Path) -> dict[str, Any]:
    """What a YAML file says."""
    return yaml.load(file.read_text(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))


def built(bundle: str, part: str, *configs: str, **settings: Any) -> Any:
    """A part of a bundle's configs, without a new interpreter; PyTorch computes it, which converts no network."""
    from tools.bundles import parse

    if "inference.yaml" in configs:
        settings.setdefault("runtime", "torch")
    return parse(bundle, *configs, **settings).get_parsed_content(part)


def virtual(kind: str) -> Callable[..., object]:
    """What makes virtual cases: "brats", "tissue", "metastases" or "ct"."""
    import bundlekit.virtual

    return getattr(bundlekit.virtual, kind)


def converted(out: str, **settings: str) -> object:
    """The cases of a folder in HDF5."""
    from tools.convert import to_h5

    return to_h5(out, **settings)


def environment_with(cache: Path) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(cache), "OMP_NUM_THREADS": "1"}


def printed(done: subprocess.CompletedProcess[str]) -> str:
    return done.stdout + done.stderr  # MONAI logs metrics to one, all else to the other


def losses(log: str, name: str = "train_loss") -> list[float]:
    return [float(value) for value in re.findall(rf"Metrics -- .*?{name}: ([0-9.]+)", log)]


def refusal(done: subprocess.CompletedProcess[str]) -> str:
    """The one message that a refused run ends with."""
    assert "Traceback" not in done.stderr
    return done.stderr.partition("\nERROR: ")[2]
