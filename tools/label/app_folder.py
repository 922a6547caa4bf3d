"""The folder that MONAI Label serves: copies of our app and of the bundles, so that originals stay as they are."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bundlekit.cases.datalist import TRAINED_ON, trained_cases, write_trained_cases
from bundlekit.errors import BundleError
from bundlekit.files import write_content
from bundlekit.weights.aside import EARLIER, keep_aside
from bundlekit.weights.settings import SETTINGS, companions
from tools.bundles import KIT, ROOT, names

_APP = Path(__file__).resolve().parent / "app"
_MARK = ".made_by_label"  # in a folder that was made here
_COPIED = "copied.json"  # beside the served weights: which file they were copied from, and its hash


def make_app(folder: Path, bundles: Sequence[str] | None, weights: Mapping[str, str], fresh: bool = False) -> list[str]:
    """Write the app and the bundles to `folder`, and return the names of the bundles that can be served.

    Configs and code are copied anew each time. Weights are copied where the folder has none, from `weights` or from the
    bundle's own `models/`; after that only if `weights` names another file than the one copied before, or if the
    bundle's own are newer than those copied from there. So those that the server has fine-tuned since are kept. Weights
    that are replaced go to `models/earlier/` of the copy.

    Args:
        folder: made if missing.
        bundles: names; None: all that have weights.
        weights: name -> `model.pt` of a training, or its folder; `settings.json` beside it comes along, and the cases
            that trained it (`trained_on.json`), so that an evaluation of what is fine-tuned from it knows them.
        fresh: replace weights that the folder has, fine-tuned or not.

    Raises:
        ValueError: for a bundle that is not there, one that is asked for and has no weights, or if none has any; if
            `folder` has anything that was not made here.
    """
    for name in (*(bundles or ()), *weights):
        if name not in names():
            raise ValueError(f"no bundle named {name!r}; there are: {', '.join(names())}.")
    _refuse_another(folder)
    served, without = [], []
    for name in bundles or names():
        source = _weights_of(name, weights)
        target = folder / "model" / name
        if source is None and not (target / "models" / "model.pt").is_file():
            without.append(name)
            continue
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _MARK).touch()
        _copy_bundle(name, target)
        if source is not None:
            _copy_weights(name, source, target / "models", name in weights, fresh)
        served.append(name)
    for name in without:
        print(f"{name}: no trained weights (bundles/{name}/models/model.pt), not served; {_how(name)}")
    if not served or (bundles and without):
        missing = ", ".join(without)
        raise ValueError(
            f"no trained weights for {missing}: a network that was not trained is not served. {_how(without[0])}"
        )
    for part in ("main.py", "lib"):
        _replace(_APP / part, folder / part)
    _replace(KIT, folder / KIT.name)
    return served


def _refuse_another(folder: Path) -> None:
    """Refuse a folder that was not made here, in which copies would replace files."""
    earlier = (folder / KIT.name).is_dir() and any(folder.glob("model/*/models/model.pt"))  # by one that left no mark
    ours = earlier or (folder / _MARK).is_file()
    if not ours and folder.is_dir() and any(folder.iterdir()):
        raise ValueError(
            f"{folder} holds files that this server did not make; expected a folder of its own for its copies, as an "
            "app of MONAI Label's has no place in it. Give another --app, or none."
        )


def _weights_of(name: str, weights: Mapping[str, str]) -> Path | None:
    if name not in weights:
        own = ROOT / name / "models" / "model.pt"
        return own if own.is_file() else None
    path = Path(weights[name]).expanduser()
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--weights {name}={weights[name]}: no such file; expected the model.pt of a training.")
    for second in _seconds(path):
        if not second.is_file():
            raise ValueError(f"--weights {name}={weights[name]}: {second} is not there, which its settings.json names.")
    return path


def _copy_bundle(name: str, target: Path) -> None:
    for part in ("configs", name, "docs", "LICENSE"):
        _replace(ROOT / name / part, target / part)


def _copy_weights(name: str, source: Path, models: Path, named: bool, fresh: bool) -> None:
    """Serve the weights of `source`, unless the folder has some that are to be kept."""
    model = models / "model.pt"
    if model.is_file() and source.samefile(model):  # what is served already
        return
    digest = _digest(source)
    if model.is_file():
        record = models / _COPIED
        recorded = json.loads(record.read_text()) if record.is_file() else {}
        copied, served = recorded.get("sha256"), _digest(model)
        same = served == digest
        if same and copied == digest:
            if not (models / TRAINED_ON).is_file():  # copied by an earlier version
                _write_trained(source, models)
            return
        # put aside here: what was copied first is among them, with the same hash
        back = EARLIER in source.resolve().parts and recorded.get("from") != str(source.resolve())
        another = named and copied is not None and (copied != digest or back)
        newer = served == copied and not named and not recorded.get("named", True)  # of the bundle, and untouched
        if not same and not fresh and not another and not newer:
            why = "from --weights" if served == copied else "fine-tuned there?"
            print(f"{name}: keeping the weights in {models} ({why}); --fresh True takes {source} instead")
            return
        if not same:
            kept = keep_aside(models, ("model.pt", SETTINGS, TRAINED_ON))
            print(f"{name}: now {source}. The weights served before are kept: --weights {name}={kept} takes them again")
    settings = source.with_name(SETTINGS)
    files = [file for file in (settings, *_seconds(source), source) if file.is_file()]
    contents = {file.name: file.read_bytes() for file in files}  # which may lie in what is cleared now
    cases = trained_cases(source.parent)
    own = models.resolve()
    if own in source.resolve().parents and EARLIER not in source.resolve().relative_to(own).parts:
        kept = models / EARLIER / f"{source.parent.name}_{digest[:8]}"
        for file_name, content in contents.items():
            write_content(kept / ("model.pt" if file_name == source.name else file_name), content)
        if cases:
            write_trained_cases(cases, kept)
        print(f"{name}: {source} is kept as {kept}: --weights {name}={kept} takes it from now on")
    model.unlink(missing_ok=True)  # first: whatever interrupts this, the next start copies again
    for old in models.iterdir() if models.is_dir() else ():  # what belongs to the weights that go
        if old.name != EARLIER:
            shutil.rmtree(old) if old.is_dir() else old.unlink()
    if SETTINGS not in contents:
        print(f"{name}: no settings.json beside {source}; taken for a network of the default widths")
    weights = contents.pop(source.name)
    for file_name, content in contents.items():
        write_content(models / file_name, content)
    if cases:
        write_trained_cases(cases, models)
    write_content(model, weights)  # last, see above
    record_of = json.dumps({"from": str(source.resolve()), "named": named, "sha256": digest}, indent=2)
    write_content(models / _COPIED, record_of)


def _seconds(model: Path) -> list[Path]:
    """Files of the networks that belong to weights and lie beside them."""
    return [model.with_name(name) for name in companions(model)]


def _write_trained(source: Path, models: Path) -> None:
    """Which cases know the weights of `source`, beside their copy."""
    if cases := trained_cases(source.parent):
        write_trained_cases(cases, models)


def _digest(model: Path) -> str:
    """SHA-256 of weights, of the settings beside them, and of the weights that these name."""
    files = [model, model.with_name("settings.json")]
    with suppress(BundleError):  # settings that cannot be read give way to others
        files += _seconds(model)
    parts = [hashlib.sha256(file.read_bytes()).digest() if file.is_file() else b"" for file in files]
    return hashlib.sha256(b"".join(parts)).hexdigest()


def _replace(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _how(name: str) -> str:
    return f"train it (bundles/{name}/docs/README.md) and give --weights {name}=FOLDER/model.pt"
