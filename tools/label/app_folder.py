"""The folder that MONAI Label serves: copies of our app and of the bundles, so that originals stay as they are."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from tools.bundles import KIT, ROOT, names

_APP = Path(__file__).resolve().parent / "app"


def make_app(folder: Path, bundles: Sequence[str] | None, weights: Mapping[str, str], fresh: bool = False) -> list[str]:
    """Write the app and the bundles to `folder`, and return the names of the bundles that can be served.

    Configs and code are copied anew each time. Weights are copied where the folder has none, from `weights` or from the
    bundle's own `models/`; those that the server has fine-tuned since are kept.

    Args:
        folder: made if missing.
        bundles: names; None: all that have weights.
        weights: name -> `model.pt` of a training, or its folder; `settings.json` beside it comes along.
        fresh: replace weights that the folder has.

    Raises:
        ValueError: for a bundle that is not there, one that is asked for and has no weights, or if none has any.
    """
    for name in (*(bundles or ()), *weights):
        if name not in names():
            raise ValueError(f"no bundle named {name!r}; there are: {', '.join(names())}.")
    served, without = [], []
    for name in bundles or names():
        source = _weights_of(name, weights)
        target = folder / "model" / name
        if source is None and not (target / "models" / "model.pt").is_file():
            without.append(name)
            continue
        _copy_bundle(name, target)
        if source is not None:
            _copy_weights(name, source, target / "models", fresh or name in weights)
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


def _weights_of(name: str, weights: Mapping[str, str]) -> Path | None:
    if name not in weights:
        own = ROOT / name / "models" / "model.pt"
        return own if own.is_file() else None
    path = Path(weights[name]).expanduser()
    path = path / "model.pt" if path.is_dir() else path
    if not path.is_file():
        raise ValueError(f"--weights {name}={weights[name]}: no such file; expected the model.pt of a training.")
    return path


def _copy_bundle(name: str, target: Path) -> None:
    for part in ("configs", name, "docs", "LICENSE"):
        _replace(ROOT / name / part, target / part)


def _copy_weights(name: str, source: Path, models: Path, replace: bool) -> None:
    model, settings = models / "model.pt", source.with_name("settings.json")
    if model.is_file() and not replace:
        if model.read_bytes() != source.read_bytes():
            print(f"{name}: keeping the weights in {models} (fine-tuned there?); --fresh True takes {source} instead")
        return
    shutil.rmtree(models, ignore_errors=True)  # with what an earlier training left
    models.mkdir(parents=True)
    if settings.is_file():
        shutil.copyfile(settings, models / "settings.json")
    else:
        print(f"{name}: no settings.json beside {source}; taken for a network of the default widths")
    shutil.copyfile(source, model)


def _replace(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
    elif source.is_file():
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _how(name: str) -> str:
    return f"train it (bundles/{name}/docs/README.md) and give --weights {name}=FOLDER/model.pt"
