"""A DICOMweb server: a study comes from it into a folder, and a DICOM-SEG goes back."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from functools import partial
from http.client import responses
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pydicom
import requests
from dicomweb_client.web import DICOMwebClient
from pydicom.tag import Tag
from requests.auth import HTTPBasicAuth
from retrying import RetryError
from tqdm import tqdm

from bundlekit.cases.folders import walk
from bundlekit.errors import BundleError, Finding
from bundlekit.files import write_result
from bundlekit.preparation.dicom_files import as_it_comes

_log = logging.getLogger(__name__)
logging.getLogger("dicomweb_client").setLevel(logging.WARNING)  # it tells UIDs, which may hold dates

PASSWORD = "DICOMWEB_PASSWORD"
_UID = re.compile(r"[0-9]+(\.[0-9]+)*")  # with the zeros in front that some scanners write
_TRIES, _WAIT_MS = 3, 500  # waits of 1 and 2 s
_SECONDS = (10, 120)  # to connect; between two parts of an answer, which may come from an archive
_NO_SUCH_SERVICE = (404, 405, 501)
# what is accepted where a request says nothing: the answer of a storage; compressing takes longer than it saves
_HEADERS = {"Accept": "application/dicom+json", "Accept-Encoding": "identity"}
_ONE_BODY = 2**31  # bytes; what is sent in chunks would be sent empty by the library's second try
# FailureReason of DICOM PS3.18, annex I: first, last, and what they mean
_FAILURES = (
    (0x0110, 0x0110, "processing failure"),
    (0x0122, 0x0122, "the server does not take this kind of object (SOP class)"),
    (0x0124, 0x0124, "not authorised"),
    (0xA700, 0xA7FF, "the server has no room for it"),
    (0xA900, 0xA9FF, "the server finds that the object is not of its kind (SOP class)"),
    (0xC122, 0xC122, "the server does not take this transfer syntax"),
    (0xC000, 0xCFFF, "the server does not understand the object"),
)
_THERE_ALREADY = (0x0111, 45070)  # duplicate SOP instance; Azure's number for it


class DicomWeb:
    """A DICOMweb server. What goes wrong is tried three times, and then told in one message.

    Args:
        url: of its DICOMweb service, http or https, e.g. http://HOST:8042/dicom-web.
        user: who asks; the password is read from the environment, see `PASSWORD`. None: nobody in particular.

    Raises:
        BundleError: for an address that cannot be one, or a user without a password.
    """

    def __init__(self, url: str, user: str | None = None) -> None:
        self.url = _address(url)
        self._user = user
        session = requests.Session()
        if user is not None:
            password = os.environ.get(PASSWORD)
            if not password:
                found = f"the user {user} without a password"
                raise BundleError(
                    Finding(self.url, found, "both", f"put the password into the environment variable {PASSWORD}")
                )
            session.auth = HTTPBasicAuth(user.encode(), password.encode())  # text would go as Latin-1
        else:
            session.auth = _nobody
        session.max_redirects = 0  # an image with the patient's name goes to the address that was given, or nowhere
        self._partial = False  # whether the last answer told that it does not hold all
        self._client = DICOMwebClient(
            self.url,
            session,
            headers=_HEADERS,
            callback=self._check,
            chunk_size=_ONE_BODY,
            timeout=_SECONDS,
        )
        self._client.host = urlsplit(self.url).netloc  # sent as Host, which has the port
        self._client.set_http_retry_params(max_attempts=_TRIES, wait_exponential_multiplier=_WAIT_MS)

    def fetch(self, study: str, folder: str | os.PathLike) -> tuple[int, int]:
        """Bring the MR instances of a study into a folder, as SOPInstanceUID.dcm; those that are there stay.

        One instance is in memory at a time. Each is asked for by its UID, so that none is missing in the end.

        Args:
            study: StudyInstanceUID.
            folder: made if missing; it may hold what an earlier fetch of this study left, and nothing else.

        Returns:
            How many were fetched, and how many were there.

        Raises:
            BundleError: naming address and study, for what is not there or not whole; what was fetched so far is whole.
        """
        if not _is_uid(study):
            raise BundleError(Finding(self.url, f"--study {study!r}", "the UID of a study", "give --study UID"))
        where = Path(folder).expanduser()
        series_of = {where / f"{uid}.dcm": (series, uid) for uid, series in self._instances(study).items()}
        _refuse_others(where, set(series_of))
        left = [file for file in series_of if not file.is_file()]
        for file in tqdm(left, desc="fetch", unit="file", disable=None):
            series, uid = series_of[file]
            with self._told(f"for instance {uid} of study {study}"), as_it_comes():
                image = self._client.retrieve_instance(study, series, uid)
                got = [str(image.get(name)) for name in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID")]
                if got != [study, series, uid]:
                    other = f"instance {got[2]} of study {got[0]} when asked for instance {uid} of study {study}"
                    raise BundleError(Finding(self.url, other, "that instance", "look into the server's log"))
                write_result(file, partial(image.save_as, enforce_file_format=True), "out")
        return len(left), len(series_of) - len(left)

    def store(self, file: str | os.PathLike) -> None:
        """Send a DICOM file to the server; it does no harm if it is there already.

        Raises:
            BundleError: if the server refuses it, or does not say that it keeps it.
        """
        with as_it_comes():
            image = pydicom.dcmread(file)
        with self._told(f"to keep {file}"), as_it_comes():
            try:
                answer = self._client.store_instances([image])
            except requests.HTTPError as error:
                refusal = _answer_of(error)
                if refusal.status_code != 409 or "json" not in refusal.headers.get("Content-Type", ""):
                    raise
                answer = pydicom.Dataset.from_json(refusal.json())  # nothing was stored, and it tells why
            failed = [int(item.get("FailureReason") or 0) for item in answer.get("FailedSOPSequence") or []]
            kept = {
                str(item.get("ReferencedSOPInstanceUID")): item for item in answer.get("ReferencedSOPSequence") or []
            }
        warned = int(kept.get(str(image.SOPInstanceUID), {}).get("WarningReason") or 0)
        if warned:
            _log.warning("%s: kept, but not as it was sent (warning 0x%04X)", self.url, warned)
        if str(image.SOPInstanceUID) in kept or (failed and set(failed) <= set(_THERE_ALREADY)):
            return
        told = ", ".join(f"{_failure(code)} (0x{code:04X})" for code in failed)
        found = f"{file} is refused: {told}" if told else f"an answer that does not name {file} as kept"
        fix = "ask who runs the server; the file is whole, and `restore` with --store True sends the mask again"
        raise BundleError(Finding(self.url, found, "that the server keeps it", fix))

    def _instances(self, study: str) -> dict[str, str]:
        """Series of each instance of a study that may be of MR, both by UID."""
        with self._told(f"for study {study}"):
            try:
                rows = self._all_pages(partial(self._client.search_for_series, study), "SeriesInstanceUID")
                series = [row for row in rows if _may_be_mr(row)]
                found = []
                for uid in [_uid_in(row, "SeriesInstanceUID") for row in series]:
                    search = partial(self._client.search_for_instances, study, uid)
                    found += [
                        (_uid_in(row, "SOPInstanceUID"), uid) for row in self._all_pages(search, "SOPInstanceUID")
                    ]
            except requests.HTTPError as error:
                if _answer_of(error).status_code not in _NO_SUCH_SERVICE:
                    raise
                # without QIDO-RS; the headers of all instances tell the same, and are larger
                rows = self._client.retrieve_study_metadata(study)
                series = [row for row in rows if _may_be_mr(row)]
                found = [(_uid_in(row, "SOPInstanceUID"), _uid_in(row, "SeriesInstanceUID")) for row in series]
        if not rows:
            raise self._no_study(f"no study {study}")
        if not found:
            modalities = ", ".join(sorted({_value(row, "Modality") for row in rows}))
            raise self._no_study(f"study {study} without MR images (it has: {modalities})")
        return dict(found)

    def _check(self, answer: requests.Response, **_: Any) -> None:
        self._partial = answer.headers.get("Warning", "").lstrip().startswith("299")  # DICOM PS3.18, 8.3.4.4
        _check_answer(answer)

    def _all_pages(self, search: Callable[..., list[dict[str, dict]]], keyword: str) -> list[dict[str, dict]]:
        """All rows of a search of which the server may tell some at a time, or all each time."""
        rows: dict[str, dict[str, dict]] = {}
        while True:
            page = {_uid_in(row, keyword): row for row in search(offset=len(rows))}
            if page.keys() <= rows.keys():
                if page and self._partial:
                    found = f"the first {len(rows)} rows of a list, and the same again when asked for the others"
                    fix = "fetch the study with another program, and give its folder"
                    raise BundleError(Finding(self.url, found, "all images of the study", fix))
                return list(rows.values())
            rows.update(page)

    def _no_study(self, found: str) -> BundleError:
        expected = "an MR study, at the address of a DICOMweb service (Orthanc's is http://HOST:8042/dicom-web)"
        return BundleError(Finding(self.url, found, expected, "check the UID (--study) and the address (--dicomweb)"))

    @contextmanager
    def _told(self, asked: str) -> Iterator[None]:
        """What goes wrong while the server is asked for something, as one message."""
        try:
            yield
        except BundleError:
            raise
        except (requests.HTTPError, RetryError) as error:
            raise self._status(_answer_of(error).status_code, asked) from error
        except requests.exceptions.SSLError as error:
            found = f"a certificate that cannot be verified ({_reason(error)})"
            fix = "of a hospital's own authority, name the certificate in the environment variable REQUESTS_CA_BUNDLE"
            raise BundleError(Finding(self.url, found, "a server that is the one it says", fix)) from error
        except requests.JSONDecodeError as error:
            found = "a web page" if error.doc.lstrip().startswith("<") else "an answer that is no JSON or ends early"
            raise self._no_study(f"{found} when asked {asked}") from error
        except requests.TooManyRedirects as error:
            where = _answer_of(error).headers.get("Location", "nowhere").partition("/studies")[0]
            expected, fix = "a server that answers itself", "give that address (--dicomweb), if it is the server's"
            raise BundleError(Finding(self.url, f"a redirect to {where}", expected, fix)) from error
        except (requests.exceptions.ChunkedEncodingError, _CutError) as error:
            found = f"an answer that ends early when asked {asked} ({_reason(error)})"
            fix = "run the command again: it goes on where it ended; if it stays so, look into the server's log"
            raise BundleError(Finding(self.url, found, "the whole answer", fix)) from error
        except requests.RequestException as error:
            fix = "check the address (--dicomweb), and that the server runs and can be reached from here"
            raise BundleError(
                Finding(self.url, f"no answer when asked {asked} ({_reason(error)})", "a DICOMweb server", fix)
            ) from error
        except Exception as error:  # the library and pydicom raise a dozen types for what is one thing to the user
            found = f"an answer that cannot be read when asked {asked} ({type(error).__name__}: {error})"
            fix = "check the address (--dicomweb); if it is right, look into the server's log"
            raise BundleError(Finding(self.url, found, "the answer of a DICOMweb server", fix)) from error

    def _status(self, status: int, asked: str) -> BundleError:
        told = f"answers {status} ({responses.get(status, 'unknown')}) when asked {asked}"
        if status == 404:
            return self._no_study(told)
        fix = "try again later, or look into the server's log"
        if status in (401, 403):
            fix = f"give --dicomweb_user NAME, and the password in the environment variable {PASSWORD}"
            fix = fix if self._user is None else f"check the user ({self._user}), the password and what the user may do"
        return BundleError(Finding(self.url, told, "a server that does as it is asked", fix))


class _CutError(requests.RequestException):
    """An answer without its end."""


def _check_answer(answer: requests.Response, **_: Any) -> None:
    """Refuse DICOM without its end, which the library would take: the connection may have been cut."""
    head = Message()
    head["Content-Type"] = answer.headers.get("Content-Type", "")
    kind = head.get_content_type()
    if kind.endswith(("json", "xml")):
        answer.headers["Content-Type"] = kind  # with a charset the library does not know it
    if not answer.ok or kind not in ("multipart/related", "application/dicom"):
        return
    boundary = head.get_boundary()
    if boundary is not None and f"--{boundary}--".encode() not in answer.content:
        raise _CutError(f"{len(answer.content)} bytes without the closing boundary")
    if boundary is None and not {"Content-Length", "Transfer-Encoding"} & answer.headers.keys():
        raise _CutError("neither a length nor a boundary tells where it ends")


def _nobody(request: Any) -> Any:
    """Authentication that adds nothing: `requests` would send what ~/.netrc has of this host."""
    return request


def _answer_of(error: Any) -> requests.Response:
    """The answer that ended in an HTTPError, or after the last try in a RetryError."""
    return error.last_attempt.value if isinstance(error, RetryError) else error.response


def _address(url: str) -> str:
    try:
        parts = urlsplit(url)
        sound = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        sound = False
    if not sound or parts.query or parts.fragment:
        expected = "an address of a DICOMweb service: http://HOST:PORT/PATH, or https"
        raise BundleError(Finding(_without_password(url), "no such address", expected, "check --dicomweb"))
    if parts.username is not None or parts.password is not None:
        fix = f"give --dicomweb_user NAME, and the password in the environment variable {PASSWORD}"
        raise BundleError(Finding(_without_password(url), "a user in the address", "the address alone", fix))
    return url.rstrip("/")


def _without_password(url: str) -> str:
    return re.sub(r"//.*@", "//...@", url)


def _is_uid(text: str) -> bool:
    return len(text) <= 64 and _UID.fullmatch(text) is not None


def _value(row: Any, keyword: str) -> str:
    """Value of an attribute in DICOM's JSON; "" if there is none."""
    try:
        return str(row[f"{Tag(keyword):08X}"]["Value"][0])
    except (KeyError, IndexError, TypeError):
        return ""


def _uid_in(row: Any, keyword: str) -> str:
    """A UID, sure to be one: it becomes the name of a file, and a part of an address."""
    uid = _value(row, keyword)
    if not _is_uid(uid):
        raise ValueError(f"{keyword} is {uid[:80]!r}, which is no UID")
    return uid


def _may_be_mr(row: Any) -> bool:
    return _value(row, "Modality") in ("MR", "")


def _refuse_others(folder: Path, files: set[Path]) -> None:
    """Nothing is mixed with the study, be it of another one or no longer on the server."""
    there = [where / name for where, names in walk(folder) for name in names] if folder.is_dir() else []
    others = [file for file in there if file not in files]
    if others:
        found = f"{len(others)} file(s) that are not of the study on the server, e.g. {others[0].name}"
        fix = "name another folder, or take them away"
        raise BundleError(Finding(str(folder), found, "no folder yet, or what an earlier fetch of it left", fix))


def _failure(code: int) -> str:
    return next((text for first, last, text in _FAILURES if first <= code <= last), "for a reason of its own")


def _reason(error: BaseException) -> str:
    """What is at the bottom of an error of requests, which tells it in a long line."""
    while (deeper := error.__cause__ or error.__context__) is not None:
        error = deeper
    return str(error) or type(error).__name__
