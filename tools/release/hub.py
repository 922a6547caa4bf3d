"""Model cards as the Hugging Face Hub reads them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

_DATA = "data_license.txt"
_METRIC = re.compile("(lesion_)?(dice|hd95|sensitivity|false_positives)")  # how keys of `eval_metrics` begin


def model_card(folder: Path, metadata: dict[str, Any]) -> str:
    """The bundle's card for the root of its folder, below the front matter that the Hub knows.

    Links and pictures are relative to the root. A link to a file that is not in the folder becomes its text.

    Args:
        folder: the unpacked bundle; its name is the bundle's.
        metadata: its metadata.json.
    """
    image = metadata["network_data_format"]["inputs"]["image"]
    trained_on = training_data((folder / "docs" / _DATA).read_text())
    scores = {key: value for key, value in metadata.get("eval_metrics", {}).items() if _METRIC.match(key)}
    metrics = sorted({_metric(key) for key in scores})
    matter: dict[str, Any] = {
        "license": "apache-2.0",
        "library_name": "monai",
        "pipeline_tag": "image-segmentation",
        "tags": ["monai", "medical", "3d", "segmentation", image["modality"].lower()],
    }
    if trained_on:
        matter["datasets"] = [re.sub("[^a-z0-9]+", "-", name.lower()).strip("-") for name in trained_on]
    if scores:
        matter["metrics"] = metrics
        result = {
            "task": {"type": "image-segmentation", "name": metadata["task"]},
            "dataset": {"type": "custom", "name": metadata["eval_metrics"]["cases"]},
            "metrics": [{"type": _metric(key), "name": key.replace("_", " "), "value": scores[key]} for key in scores],
        }
        matter["model-index"] = [{"name": metadata["name"], "results": [result]}]
    front = yaml.safe_dump(matter, sort_keys=False, allow_unicode=True, width=10**4)
    return f"---\n{front}---\n\n{_from_the_root((folder / 'docs' / 'README.md').read_text(), folder)}"


def training_data(text: str) -> list[str]:
    """Names of the data sets in a data_license.txt that the weights come from, by the line `Use:`, without brackets."""
    parts = re.split(r"\n\s*\n", text)
    return [part.strip().partition(" (")[0].partition("\n")[0] for part in parts
            if re.search(r"^    Use:.*\n?.*weights in models/", part, re.MULTILINE)]  # fmt: skip


def _metric(key: str) -> str:
    found = _METRIC.match(key)
    return found[0] if found else key


def _from_the_root(card: str, folder: Path) -> str:
    """The card of `docs/`, with links that lead from the root."""

    def rewrite(link: re.Match[str]) -> str:
        picture, text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        there = (folder / "docs" / target.partition("#")[0]).is_file() and not target.startswith("..")
        return f"{picture}[{text}](docs/{target})" if there else text

    return re.sub(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)", rewrite, card)
