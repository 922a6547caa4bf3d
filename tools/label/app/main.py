"""MONAI Label app: MONAI Label's own `monaibundle`, with cases of several files and errors that say what is wrong.

The folder is copied, with the bundles under `model/`, by `python -m tools label`.
"""

from __future__ import annotations

import importlib.util
import logging
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from fastapi import HTTPException
from lib import bundles
from lib.datastore import CaseDatastore
from lib.infer import CaseInfer
from lib.scoring import LabelDice, Uncertainty
from lib.train import CaseTrain
from monailabel.config import settings
from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.tasks.activelearning.epistemic import Epistemic

from bundlekit.errors import bundle_error_in

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
            extensions=settings.MONAI_LABEL_DATASTORE_FILE_EXT,
            auto_reload=settings.MONAI_LABEL_DATASTORE_AUTO_RELOAD,
            read_only=settings.MONAI_LABEL_DATASTORE_READ_ONLY,
        )

    def init_infers(self) -> dict[str, Any]:
        """One inference task a bundle."""
        return {name: CaseInfer(name, path, self.conf, self.class_names[name]) for name, path in self.models.items()}

    def init_trainers(self) -> dict[str, Any]:
        """One training task a bundle; none over DICOMweb, where a case is a single series."""
        if not isinstance(self.datastore(), CaseDatastore):
            return {}
        return {name: CaseTrain(name, path, self.conf) for name, path in self.models.items()}

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
            HTTPException: 404 for a model or case that is not there, 400 for bad input, with what to do about it.
        """
        with _Explained():
            store, image = datastore or self.datastore(), request.get("image")
            model = request.get("model")
            known = isinstance(store, CaseDatastore) and model in self._infers
            if known and isinstance(image, str) and not os.path.exists(image):
                request = {**request, "case_file": store.input_file(model, image)}
            return super().infer(request, datastore)

    def batch_infer(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label does, going on after a case that fails, and without GPUs where there is none."""
        if not torch.cuda.is_available():
            request = {**request, "multi_gpu": False}

        def infer(one: dict[str, Any], store: Any) -> dict[str, Any]:
            try:
                return self.infer(one, store)
            except HTTPException as error:
                logger.error("%s: %s", one.get("image"), error.detail)
                return {"error": error.detail}

        return self._batch_infer(request, datastore or self.datastore(), infer)

    def train(self, request: dict[str, Any]) -> dict[str, Any]:
        """Fine-tune a bundle on the saved labels.

        Raises:
            HTTPException: 404 for a model that is not there, 400 for labels or settings that the bundle refuses.
        """
        with _Explained():
            return super().train(request)

    def scoring(self, request: dict[str, Any], datastore: Any = None) -> dict[str, Any]:
        """Score the cases.

        Raises:
            HTTPException: 404 for a method that is not there, 400 for cases that the bundle refuses.
        """
        with _Explained():
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
