"""Put trained weights into a bundle, with what its users need to trust them."""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path

import torch

from bundlekit.cases.datalist import TRAINED_ON, trained_cases, trained_text
from bundlekit.files import write_content
from bundlekit.weights.loading import broken_weights, load_network, read_weights
from bundlekit.weights.settings import SETTINGS, companions, read_settings
from bundlekit.weights.shipped import RECORD, shipped_files
from tools.bundles import ROOT, folder_of, parse, plain_errors

_LARGEST = 50 * 2**20  # bytes


def ship(bundle: str, checkpoint: str, half: bool = True, folder: str = "") -> str:
    """Copy trained weights to a bundle's `models/model.pt`, with their settings and their SHA-256.

    Writes `model.pt` (a plain state dict, loadable with `weights_only=True`), the second network beside it where its
    settings name one (`lowres`), `settings.json` (what inference has to do as training did), `trained_on.json` (the
    cases that trained it and the weights it began with, so that evaluation knows them; no file where none are recorded)
    and `SHA256SUMS` (readable by `sha256sum -c`). The split of the training stays behind: it names files of the machine
    it ran on. Evaluate the shipped file: half precision is only worth it if the scores agree.

    Example: python -m tools ship brain_tissue_vnet --checkpoint run/model.pt

    Args:
        bundle: name of a bundle.
        checkpoint: `model.pt` of a training, with its `settings.json` beside it.
        half: store floating-point weights in half precision; they are computed with in single precision.
        folder: name of a folder in `models/` for weights beside the bundle's own, such as those of another of its
            networks.

    Raises:
        ValueError: if there is no such file, no settings beside it, a weight that half precision cannot hold, more
            than 50 MB, or a folder that is no plain name.
        BundleError: if the file is damaged, or holds the weights of another network than the bundle's.
    """
    folder_of(bundle)  # refuses an unknown name
    if folder and not folder.isidentifier():
        raise ValueError(f"--folder {folder}: expected the name of a folder in models/, such as unet.")
    source = Path(checkpoint)
    for file in (source, source.parent / SETTINGS):
        if not file.is_file():
            raise ValueError(f"{file} is not there; expected model.pt of a training, with {SETTINGS} beside it.")
    state = read_weights(str(source))
    with plain_errors():
        parser = parse(bundle, "inference.yaml", checkpoint=str(source))
        network = parser.get_parsed_content("network_def")
    load_network(network, state, str(source))  # refuses those of another bundle
    models = ROOT / bundle / "models" / folder
    weights = {"model.pt": _content(source, state, half)}
    for second in [source.with_name(name) for name in companions(source)]:
        state = read_weights(str(second))
        load_network(parser.get_parsed_content("lowres_network"), state, str(second))
        weights[second.name] = _content(second, state, half)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in weights.items()}
    files = {
        **weights,
        SETTINGS: (json.dumps(read_settings(source), indent=2) + "\n").encode(),
        RECORD: "".join(f"{digest}  {name}\n" for name, digest in digests.items()).encode(),
    }
    gone = [file for file in shipped_files(models) if file.name not in weights]
    cases = trained_cases(source.parent)
    if cases:
        files[TRAINED_ON] = trained_text(cases).encode()
    for name, data in files.items():
        write_content(models / name, data)
    if not cases:
        gone.append(models / TRAINED_ON)
    for file in gone:  # of earlier weights
        file.unlink(missing_ok=True)
    for name, content in weights.items():
        print(f"{models / name}: {len(content) / 2**20:.1f} MB, SHA-256 {digests[name]}")
    return str(models / "model.pt")


def _content(source: Path, state: dict[str, torch.Tensor], half: bool) -> bytes:
    """A state dict as a file.

    Raises:
        ValueError: if half precision cannot hold it, or it is too large.
    """
    if half:
        state = {key: value.half() if value.is_floating_point() else value for key, value in state.items()}
    broken = broken_weights(state)
    if broken:
        raise ValueError(f"{source}: weights that are not finite in this precision, e.g. {broken[0]}; try --nohalf.")
    buffer = io.BytesIO()
    torch.save(state, buffer)
    content = buffer.getvalue()
    if len(content) > _LARGEST:
        raise ValueError(f"{source}: {len(content) / 2**20:.0f} MB; expected 50 MB at most. Train a narrower network.")
    return content
