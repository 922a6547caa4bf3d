"""MONAI Label app: MONAI Label's own `monaibundle`, with cases of several files and errors that say what is wrong.

The folder is copied, with the bundles under `model/`, by `python -m tools label`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fastapi import HTTPException
from lib import bundles
from lib.checks import inside, listed, plain_name
from lib.datastore import CaseDatastore
from lib.infer import CaseInfer
from lib.scoring import LabelDice, Uncertainty
from lib.train import CaseTrain
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.tasks.activelearning.epistemic import Epistemic

from bundlekit.errors import BundleError, bundle_error_in
from bundlekit.expressions import refuse_expressions

logger = logging.getLogger(__name__)


def _stock_app() -> ModuleType:
    """The `monaibundle` app that MONAI Label installs beside its package."""
    path = Path(sys.prefix, "monailabel", "sample-apps", "monaibundle", "main.py")
    spec = importlib.util.spec_from_file_location("monaibundle_main", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


_stock = _stock_app()


# MONAI Label looks for a class of which MONAILabelApp is a direct base
class BundlesApp(_stock.MyApp, MONAILabelApp):  # type: ignore[name-defined, misc]
    """The stock app with this project's datastore, inference, training and scoring for each bundle."""

    def init_datastore(self) -> Any:
        """The studies folder as cases; MONAI Label's own store for an address (DICOMweb)."""
        self.class_names = {name: bundles.class_names(path) for name, path in self.models.items()}
        if self.studies.startswith(("http://", "https://")):
            return super().init_datastore()
        return CaseDatastore(
            self.studies,
            self.conf.get("labels") or self.studies,
            {name: bundles.scan_cases(path) for name, path in self.models.items()},
            {name: bundles.case_settings(path) for name, path in self.models.items()},
            {name: bundles.modalities(path) for name, path in self.models.items()},
            self.class_names,
            self._trained_here(),
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """One inference task a bundle."""
        return {name: CaseInfer(name, path, self.conf, self.class_names[name]) for name, path in self.models.items()}

    def init_trainers(self) -> dict[str, Any]:
        """One training task a bundle that has any; none over DICOMweb, where a case is a single series."""
        if not isinstance(self.datastore(), CaseDatastore):
            return {}
        return {name: CaseTrain(name, self.models[name], self.conf) for name in self._trained_here()}

    def _trained_here(self) -> list[str]:
        """Bundles that labels from a viewer train: others have None as `SAVED_LABEL` in their package."""
        packages = {name: bundles.package(path) for name, path in self.models.items()}
        return [name for name, package in packages.items() if getattr(package, "SAVED_LABEL", {}) is not None]

    def init_strategies(self) -> dict[str, Any]:
        """The stock app's (random, first), and for each bundle the case it is least sure of."""
        most_unsure = "The case of which {} is least sure; run the scoring method of this name first"
        return {
            **super().init_strategies(),
            **{
                f"{name}_uncertainty": Epistemic(key=f"{name}_entropy", desc=most_unsure.format(name))
                for name in self.models
            },
        }

    def init_scoring_methods(self) -> dict[str, Any]:
        """Dice of what was segmented and what was saved, and for each bundle how unsure it is."""
        if not isinstance(self.datastore(), CaseDatastore):
            return {}
        unsure = {
            f"{name}_uncertainty": Uncertainty(name, self._infers[name], bundles.has_regions(path))
            for name, path in self.models.items()
        }
        return {"dice": LabelDice(self.class_names), **unsure}

    def infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Segment a case given by its name, or by the path of its folder or of one of its files.

        Raises:
            HTTPException: 404 for a model or case that is not there, 400 for bad input or a path outside of the
                studies, with what to do about it.
        """
        with _Explained():
            refuse_expressions(request, "the request")
            return self._infer(request, datastore or self.datastore())

    def _infer(self, request: dict[str, Any], store: Any) -> dict[str, Any]:
        request = {key: value for key, value in request.items() if key not in ("case_file", "case_values")}
        tag = request.get("label_tag", "original")
        plain_name(getattr(tag, "value", tag), "label_tag")
        model, image = request.get("model"), request.get("image")
        if model not in self._infers:
            message = f"There is no model {model!r} available; there are {listed(self._infers)}."
            raise MONAILabelException(MONAILabelError.INVALID_INPUT, message)
        if isinstance(image, str) and os.path.isabs(image):
            request["image"] = inside(image, [*self._studies(), tempfile.gettempdir(), self._sent()])
            if request["image"] is None or not os.path.exists(request["image"]):
                where = " or ".join(self._studies()) or "the DICOMweb server"
                raise BundleError(f"{image} is no file or folder of {where}; name a case, or send the file itself.")
        else:
            plain_name(image, "image")
            if isinstance(store, CaseDatastore):
                request["case_file"] = store.input_file(str(model), str(image))
                case = store.case(str(model), str(image))
                request["case_values"] = case["label_values"] if case else None
        return super().infer(request, store)

    def _studies(self) -> list[str]:
        """The folder whose files a request may name; none for a DICOMweb server."""
        return [self.studies] if isinstance(self.datastore(), CaseDatastore) else []

    def _sent(self) -> str:
        """Folder of what clients sent in sessions."""
        return str(self.sessions().store_path) if self.sessions() else tempfile.gettempdir()

    def infer_wsi(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Whole slides are nothing for these bundles; raises HTTPException (404)."""
        raise HTTPException(404, detail="whole slides are not segmented here.")

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label does, going on after a case that fails, and without GPUs where there is none.

        Raises:
            HTTPException: 400 for a request with expressions or of no meaning.
        """
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False}

        def infer(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                with _Explained():
                    return self._infer(one, store)
            except HTTPException as error:
                logger.error("%s: %s", one.get("image"), error.detail)
                return {"error": error.detail}

        with _Explained():
            refuse_expressions(request, "the request")
            return self._batch_infer(request, datastore or self.datastore(), infer)

    def next_sample(self, request: dict[str, Any]) -> dict[str, Any]:
        """The case to label next.

        Raises:
            HTTPException: 404 for a strategy that is not there, 400 for a request with expressions.
        """
        with _Explained():
            refuse_expressions(request, "the request")
            if request.get("strategy") not in self._strategies:
                message = f"no strategy {request.get('strategy')!r}; there are {listed(self._strategies)}."
                raise MONAILabelException(MONAILabelError.INVALID_INPUT, message)
            return super().next_sample(request)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fine-tune a bundle on the saved labels.

        Raises:
            HTTPException: 404 for a model that is not there, 400 for labels or settings that the bundle refuses.
        """
        with _Explained():
            refuse_expressions(request, "the request")
            return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score the cases.

        Raises:
            HTTPException: 404 for a method that is not there, 400 for cases that the bundle refuses.
        """
        with _Explained():
            refuse_expressions(request, "the request")
            return super().scoring(request, datastore)


class _Explained:
    """Turns what goes wrong inside into an answer with a message; MONAI Label itself says "Internal Server Error"."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if error is None or isinstance(error, HTTPException) or not isinstance(error, Exception):
            return
        if isinstance(error, MONAILabelException):
            status = 404 if error.error == MONAILabelError.INVALID_INPUT else 500
            raise HTTPException(status, detail=error.msg) from error
        message = bundle_error_in(error)
        if message is None and type(error) is ValueError:
            message = str(error)
        if message is not None:
            logger.warning("refused: %s", message)
            raise HTTPException(400, detail=message) from error
        logger.exception("failed")
        raise HTTPException(500, detail=f"{type(error).__name__}: {error}") from error
