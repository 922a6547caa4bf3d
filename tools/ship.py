"""Put trained weights into a bundle, with what its users need to trust them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from bundlekit.cases.datalist import TRAINED_ON, trained_cases, trained_text
from bundlekit.files import write_whole
from bundlekit.weights.loading import load_network, read_checkpoint
from bundlekit.weights.settings import SETTINGS, read_settings
from bundlekit.weights.shipped import RECORD
from tools.bundles import ROOT, folder_of, parse, plain_errors

_LARGEST = 50 * 2**20  # bytes


def ship(bundle: str, checkpoint: str, half: bool = True) -> str:
    """Copy trained weights to a bundle's `models/model.pt`, with their settings and their SHA-256.

    Writes `model.pt` (a plain state dict, loadable with `weights_only=True`), `settings.json` (what inference has to
    do as training did), `trained_on.json` (the cases that trained it and the weights it began with, so that
    evaluation knows them; no file where none are recorded) and `SHA256SUMS` (readable by `sha256sum -c`). The split of
    the training stays behind: it names files of the machine it ran on. Evaluate the shipped file: half precision is
    only worth it if the scores agree.

    Example: python -m tools ship brain_tissue_vnet --checkpoint run/model.pt

    Args:
        bundle: name of a bundle.
        checkpoint: `model.pt` of a training, with its `settings.json` beside it.
        half: store floating-point weights in half precision; they are computed with in single precision.

    Raises:
        ValueError: if there is no such file, no settings beside it, a weight that half precision cannot hold, or more
            than 50 MB.
        BundleError: if the file is damaged, or holds the weights of another network than the bundle's.
    """
    folder_of(bundle)  # refuses an unknown name
    source = Path(checkpoint)
    for file in (source, source.parent / SETTINGS):
        if not file.is_file():
            raise ValueError(f"{file} is not there; expected model.pt of a training, with {SETTINGS} beside it.")
    saved = read_checkpoint(str(source))
    state = saved.get("model", saved)
    with plain_errors():
        network = parse(bundle, "inference.yaml", checkpoint=str(source)).get_parsed_content("network_def")
    load_network(network, state, str(source))  # refuses those of another bundle
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    broken = [key for key, value in state.items() if value.is_floating_point() and not torch.isfinite(value).all()]
    if broken:
        raise ValueError(f"{source}: weights that are not finite in this precision, e.g. {broken[0]}; try --nohalf.")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    if len(content) > _LARGEST:
        raise ValueError(f"{source}: {len(content) / 2**20:.0f} MB; expected 50 MB at most. Train a narrower network.")
    models = ROOT / bundle / "models"
    digest = hashlib.sha256(content).hexdigest()
    settings = read_settings(source)
    files = {
        "model.pt": content,
        SETTINGS: (json.dumps(settings, indent=2) + "\n").encode(),
        RECORD: f"{digest}  model.pt\n".encode(),
    }
    cases = trained_cases(source.parent)
    if cases:
        files[TRAINED_ON] = trained_text(cases).encode()
    for name, data in files.items():
        write_whole(models / name, lambda file, data=data: file.write(data))  # type: ignore[misc]
    if not cases:
        (models / TRAINED_ON).unlink(missing_ok=True)  # of earlier weights
    print(f"{models / 'model.pt'}: {len(content) / 2**20:.1f} MB, SHA-256 {digest}")
    return str(models / "model.pt")
