"""Pages to look at, of a folder of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai.bundle import ConfigParser
from tqdm import tqdm

from bundlekit.configs import refuse_settings
from bundlekit.report.handler import names_of
from bundlekit.report.pages import write_report
from bundlekit.report.scans import ScansOf
from bundlekit.report.table import VolumeTable
from tools.bundles import names, parse, plain_errors


def report(folder: str, dataset_dir: str | None = None, datalist: str | None = None, **settings: Any) -> None:
    """Make pages of a folder of results: report/index.html for all cases, and a page with pictures for each.

    Example: python -m tools report OUT --dataset_dir DIR

    Args:
        folder: `--output_dir` of an inference.
        dataset_dir: of that inference, for the scans; None (and no datalist): pages without pictures.
        datalist: of that inference.
        settings: others of the bundle's inference.yaml that its cases need, e.g. --allow_unprepared True.

    Raises:
        ValueError: if there are no results, a file cannot be read, or masks and scans do not belong together.
    """
    bundle, parser = results_in(folder, dataset_dir, datalist, settings)
    cases: list[Any] = []
    load: Any = None
    window: Sequence[float] | None = None
    shown: dict[str, str] = {}
    if parser is not None and (dataset_dir or datalist):
        with plain_errors():
            cases = parser.get_parsed_content("cases")
        load = parser.get_parsed_content("preprocessing").transforms[0]
        window = parser.get_parsed_content("window") if "window" in parser else None
        written: Any = next(part for part in parser["handlers"] if part["_target_"] == "bundlekit.WriteReport")
        shown = {"shown": written["shown"]} if "shown" in written else {}
    classes: Sequence[str] = () if parser is None else parser.get_parsed_content("class_names")
    path = write_report(
        folder,
        ScansOf(cases, load, window, **shown),
        names_of(cases, classes),
        title=f"{bundle}: {Path(folder).absolute().name}",
        progress=lambda found: tqdm(found, desc="pages", disable=None),
    )
    print(path)


def results_in(
    folder: str, dataset_dir: str | None, datalist: str | None, settings: Mapping[str, Any]
) -> tuple[str, ConfigParser | None]:
    """The bundle that made a folder of results, and its inference.yaml; "" and None where no table tells.

    Raises:
        ValueError: if several did, or an unknown one; if its network has other classes than the weights that the
            settings name; for a setting that the config does not have.
    """
    table = VolumeTable(folder)
    rows = list(table.rows()) if table.path.is_file() else []
    bundles = {row["bundle"] for row in rows}
    if len(bundles) > 1 and (dataset_dir or datalist):
        raise ValueError(f"{folder} holds results of {', '.join(sorted(bundles))}; expected those of one bundle.")
    bundle = next(iter(bundles), "")
    if not bundles:
        return "", None
    if bundle not in names():
        raise ValueError(f"{table.path}: no bundle {bundle!r}; there are {', '.join(names())}.")
    known: Any = parse(bundle, "inference.yaml").config
    refuse_settings(known, settings, f"{bundle}'s inference.yaml")
    parser = parse(bundle, "inference.yaml", dataset_dir=dataset_dir, datalist=datalist, **settings)
    made = {row["name"] for row in rows if row["kind"] == "class"}
    with plain_errors():
        classes: Sequence[str] = parser.get_parsed_content("class_names")
    if (dataset_dir or datalist) and made and made != set(classes):
        raise ValueError(
            f"{table.path} is of a network with the classes {', '.join(sorted(made))}; {bundle} is now one with "
            f"{', '.join(classes)}. Give the weights of that inference, as there: --ckpt_dir or --checkpoint."
        )
    return bundle, parser
