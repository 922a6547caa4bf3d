"""What is in a packed bundle, as a CycloneDX software bill of materials."""

from __future__ import annotations

import hashlib
import re
import uuid
from datetime import datetime, timezone
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bundlekit.version import __version__
from bundlekit.weights.shipped import shipped_files, shipped_folders
from tools.pack import requirements_of

if TYPE_CHECKING:
    from cyclonedx.model.component import Component

_LICENCE = "Apache-2.0"  # of bundles, weights and bundlekit
_VIEWER = "bundlekit/report/niivue"  # the one thing inside that is not ours


def sbom(folder: Path, metadata: dict[str, Any], zipped: bytes, when: int) -> str:
    """The SBOM, JSON of CycloneDX 1.6: the bundle, its weights and bundlekit, and the packages that it names.

    Args:
        folder: the unpacked bundle; its name is the bundle's.
        metadata: its metadata.json.
        zipped: the zip; names the SBOM, so that the same zip has the same.
        when: seconds since 1970.
    """
    from cyclonedx.model import HashAlgorithm, HashType
    from cyclonedx.model.bom import Bom, BomMetaData
    from cyclonedx.model.component import ComponentType
    from cyclonedx.output import make_outputter
    from cyclonedx.schema import OutputFormat, SchemaVersion

    def sha256(content: bytes) -> list[HashType]:
        return [HashType(alg=HashAlgorithm.SHA_256, content=hashlib.sha256(content).hexdigest())]

    name, version = folder.name, metadata["version"]
    whole = _component(
        name, version, _LICENCE, type=ComponentType.APPLICATION, hashes=sha256(zipped),
        description=metadata["description"], copyright=metadata["copyright"],
    )  # fmt: skip
    parts = [_component("bundlekit", __version__, _LICENCE)]
    models = folder / "models"
    for weights in [file for there in shipped_folders(models) for file in shipped_files(there)]:
        own = weights if weights.name != "model.pt" else weights.parent  # models/unet/model.pt: unet
        called = f"{name} weights" if own == models else f"{name} {own.stem} weights"
        kind = ComponentType.MACHINE_LEARNING_MODEL
        parts.append(_component(called, version, _LICENCE, type=kind, hashes=sha256(weights.read_bytes())))
    licence = folder / _VIEWER / "LICENSE.txt"
    found = re.search(r"^(\S+\.js) is NiiVue ([\d.]+\d)", licence.read_text(), re.MULTILINE)
    if found is None:
        raise ValueError(f"{licence}: says no version; expected `FILE is NiiVue 1.2.3`.")
    viewer = (folder / _VIEWER / found[1]).read_bytes()
    parts.append(_component("@niivue/niivue", found[2], "BSD-2-Clause", "npm", hashes=sha256(viewer)))
    for line in requirements_of(name):
        package, _, pinned = line.partition("==")
        parts.append(_component(package, pinned, "", "pypi"))
    bom = Bom(
        serial_number=uuid.uuid5(uuid.NAMESPACE_OID, hashlib.sha256(zipped).hexdigest()),
        metadata=BomMetaData(component=whole, timestamp=datetime.fromtimestamp(when, timezone.utc)),
        components=parts,
    )
    bom.register_dependency(whole, parts)
    return make_outputter(bom, OutputFormat.JSON, SchemaVersion.V1_6).output_as_string(indent=2) + "\n"


def _component(name: str, version: str, licence: str, registry: str = "", **more: Any) -> Component:
    """A component with a reference of its own; with a package URL where a registry has it."""
    from cyclonedx.model.component import Component
    from cyclonedx.model.license import DisjunctiveLicense
    from packageurl import PackageURL

    group, _, plain = name.rpartition("/")
    url = PackageURL(registry, group or None, plain, version) if registry else None
    licences = [DisjunctiveLicense(id=licence)] if licence else None
    reference = str(url or f"{name}@{version}")
    return Component(name=plain, group=group or None, version=version, purl=url, bom_ref=reference,
                     licenses=licences, **more)  # fmt: skip
