"""MONAI Label's web application behind a gate: who may ask, what is there to be asked, and no path for a name.

`monailabel.main start_server --uvicorn_app lib.web:app` serves it.
"""

from __future__ import annotations

import json
import logging
import os
import re
from collections.abc import Callable
from functools import wraps
from typing import Any

from fastapi import HTTPException
from fastapi.responses import JSONResponse
from monailabel import app as stock
from monailabel.config import settings
from monailabel.interfaces.exception import MONAILabelError, MONAILabelException
from monailabel.interfaces.utils.app import app_instance
from monailabel.utils.async_tasks.task import AsyncTask
from starlette.middleware.trustedhost import TrustedHostMiddleware
from starlette.routing import compile_path

from bundlekit.errors import BundleError
from bundlekit.expressions import refuse_expressions
from lib.checks import check_address, listed

logger = logging.getLogger(__name__)

HOSTS = ["127.0.0.1", "localhost"]  # it listens on 127.0.0.1 alone; another name is one that was made to lead here
# what viewers use. Not here: whole slides, replacing or deleting weights (--weights does that), reloading the app
SERVED = {
    "/": "GET", "/docs": "GET", "/openapi.json": "GET", "/favicon.ico": "GET", "/static/{path:path}": "GET HEAD",
    "/info/": "GET", "/model/{model}": "GET", "/model/info/{model}": "GET",
    "/infer/{model}": "POST", "/batch/infer": "GET DELETE", "/batch/infer/{model}": "POST",
    "/train/": "GET POST DELETE", "/train/{model}": "POST",
    "/scoring/": "GET POST DELETE", "/scoring/{method}": "POST", "/activelearning/{strategy}": "POST",
    "/datastore/": "GET PUT DELETE", "/datastore/image": "GET HEAD PUT DELETE", "/datastore/image/info": "GET PUT",
    "/datastore/label": "GET HEAD PUT DELETE", "/datastore/label/info": "GET PUT", "/datastore/updatelabelinfo": "PUT",
    "/datastore/dataset": "GET",
    "/auth/": "GET", "/auth/token": "POST", "/auth/token/valid": "GET",
    "/session/": "PUT", "/session/{session_id}": "GET DELETE",
    "/logs/": "GET", "/logs/gpu": "GET", "/ohif/{path:path}": "GET",
}  # fmt: skip
_FETCH = (b"sec-fetch-site", b"sec-fetch-dest")  # from whose page, and as what, a browser asks
# where the studies are on a DICOMweb server: it gets images by itself, and viewers ask it through here
_DICOMWEB = {"/proxy/dicom/{path:path}": "GET POST", "/datastore/": "GET", "/datastore/image": "GET HEAD"}


class Gate:
    """ASGI middleware that refuses requests of other web pages, and names in them that lead to other files.

    A browser sends a page's requests wherever the page likes, and says in `Origin` whose they are. CORS decides only
    whether the page may read the answer.

    Args:
        app: behind the gate.
        origins: of pages that may ask, e.g. "http://127.0.0.1:8000".
        routes: pattern of a path, and the methods it is there for.
    """

    def __init__(self, app: Callable, origins: list[str], routes: list[tuple[re.Pattern, set[str]]]) -> None:
        self.app = app
        self.origins = set(origins)
        self.routes = routes

    async def __call__(self, scope: dict[str, Any], receive: Callable, send: Callable) -> None:
        """Answer a request, as ASGI has it: with 403, 404 or 400 and the reason, or as the app does."""
        answer = self.app
        if scope["type"] == "http":
            status, message = self._refusal(scope)
            if message:
                logger.warning("refused: %s %s: %s", scope["method"], scope["path"], message)
                answer = JSONResponse({"detail": message}, status)
        await answer(scope, receive, send)

    def _refusal(self, scope: dict[str, Any]) -> tuple[int, str]:
        origins = [value.decode("latin-1") for name, value in scope["headers"] if name == b"origin"]
        for origin in origins:
            if origin not in self.origins:
                message = f"requests of pages of {origin} are not answered; allow them by MONAI_LABEL_CORS_ORIGINS"
                return 403, message
        fetched = {name: value.decode("latin-1").lower() for name, value in scope["headers"] if name in _FETCH}
        foreign = fetched.get(_FETCH[0]) in ("cross-site", "same-site")
        if foreign and not origins and fetched.get(_FETCH[1]) != "document":  # a picture or a script of a page, no link
            return 403, "requests of pages of other addresses are not answered"
        path, method = scope["path"], scope["method"]
        if not any(method in methods and route.match(path.rstrip("/")) for route, methods in self.routes):
            return 404, f"{method} {path} is not served here"
        try:
            check_address(path, scope["query_string"].decode("latin-1"))
        except BundleError as error:
            return 400, str(error)
        return 200, ""


def _checked(run: Callable) -> Callable:
    """`AsyncTask.run`, which starts a process with what a request says, after a look at that."""

    @wraps(run)
    def checked(
        method: str, request: dict | None = None, params: dict | None = None, *more: Any, **options: Any
    ) -> Any:
        asked = {**(request or {}), **(params or {})}
        try:
            refuse_expressions(asked, "the request")
        except BundleError as error:
            raise HTTPException(400, detail=str(error)) from error
        if "bundle_path" in asked:
            raise HTTPException(400, detail="the request: 'bundle_path' is not for a request to say.")
        if not isinstance(asked.get("gpus", ""), str) or not re.fullmatch(r"(all|[\d, ]*)", asked.get("gpus", "")):
            raise HTTPException(400, detail=f"the request: gpus is {asked['gpus']!r}; expected all, or e.g. 0,1.")
        app = app_instance()
        kind, there = ("method", app._scoring_methods) if method == "scoring" else ("model", app._infers)
        if method == "train":
            there = app._trainers
        if str(asked.get(kind)) not in there:
            message = f"no {kind} {asked.get(kind)!r} for {method}; there are {listed(there)}."
            raise HTTPException(404, detail=message)
        if method == "train":  # here, since a process in the background can refuse nothing
            try:
                there[str(asked["model"])].checked(asked)
            except BundleError as error:
                raise HTTPException(400, detail=str(error)) from error
        return run(method, request, params, *more, **options)

    return checked


def _explain(request: Any, error: MONAILabelException | BundleError | json.JSONDecodeError) -> JSONResponse:
    """What is wrong with a request, where MONAI Label itself would say "Internal Server Error"."""
    if isinstance(error, MONAILabelException):
        known = error.error in (
            MONAILabelError.INVALID_INPUT,
            MONAILabelError.APP_INIT_ERROR,
            MONAILabelError.APP_ERROR,
        )
        return JSONResponse({"detail": error.msg}, 404 if known else 500)
    text = str(error) if isinstance(error, BundleError) else f"no JSON: {error}"
    logger.warning("refused: %s", text)
    return JSONResponse({"detail": text}, 400)


def _routes() -> list[tuple[re.Pattern, set[str]]]:
    """Pattern of a path, without its last slash, and the methods it is there for."""
    offered = {**SERVED, **(_DICOMWEB if settings.MONAI_LABEL_STUDIES.startswith("http") else {})}
    return [(compile_path(path.rstrip("/"))[0], {"OPTIONS", *methods.split()}) for path, methods in offered.items()]


def _gated() -> Gate:
    stock.origins[:] = json.loads(os.environ["LABEL_ORIGINS"])  # the list that MONAI Label's own CORS middleware reads
    for kind in (MONAILabelException, BundleError, json.JSONDecodeError):
        stock.app.add_exception_handler(kind, _explain)
    AsyncTask.run = staticmethod(_checked(AsyncTask.run))
    return Gate(TrustedHostMiddleware(stock.app, allowed_hosts=HOSTS), stock.origins, _routes())


app = _gated()
