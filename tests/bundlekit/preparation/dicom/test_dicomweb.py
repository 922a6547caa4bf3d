"""Studies from a DICOMweb server and masks to it, where the server or the way to it is not as it should be."""

from __future__ import annotations

import base64
import json
import logging
import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pydicom
import pytest
import requests
from pydicom.dataset import Dataset

from bundlekit.errors import BundleError
from bundlekit.preparation import dicomweb
from bundlekit.preparation.dicom_files import read_headers
from bundlekit.preparation.dicomweb import PASSWORD, DicomWeb
from tests.bundlekit.preparation.dicom.conftest import DAY, NAME, PATIENT, save, slices, uid

STUDY = uid("study")
HTML = (200, "text/html; charset=utf-8", b"<!DOCTYPE html><title>Log in</title>")
JSON, PARTS = "application/dicom+json", 'multipart/related; type="application/dicom"; boundary="bound-1"'


class StandIn(ThreadingHTTPServer):
    """A DICOMweb server of one study of two MR series and a report: answers by path, which a test may change.

    Args:
        folder: for the files.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_port}/dicom-web"
        self.images = [*slices("T1")[:3], *slices("T2")[:2]]
        self.bodies = [file.read_bytes() for file in save(self.images, folder)]
        self.asked: list[str] = []  # path of each request
        self.headers: list[Any] = []  # of each request
        self.stored: list[bytes] = []  # bodies
        self.page = 100  # rows of one answer
        self.more: dict[str, str] = {}  # headers of every answer
        self.changed: dict[str, tuple] = {}  # end of a path -> status, type, body, and how it is cut
        self.store_answer: tuple[int, str, bytes] = (200, JSON, b"{}")

    def answer(self, path: str, offset: int) -> tuple:
        """Status, type, body."""
        for end, answer in self.changed.items():
            if path.endswith(end):
                return answer
        parts = path.removeprefix(f"/dicom-web/studies/{STUDY}").strip("/").split("/")
        report = {"00080060": {"vr": "CS", "Value": ["SR"]}, "0020000E": {"vr": "UI", "Value": ["1.2.3"]}}
        headers = [image.to_json_dict(bulk_data_threshold=100) for image in self.images]
        if parts == ["metadata"]:
            rows = [*headers, report]
        elif parts == ["series"]:
            rows = [report, *{str(row["0020000E"]): row for row in headers}.values()]
        elif parts[-1] == "instances":
            rows = [row for row in headers if row["0020000E"]["Value"] == [parts[1]]]
        else:
            body = self.bodies[[image.SOPInstanceUID for image in self.images].index(parts[-1])]
            return 200, PARTS, part(body)
        return 200, JSON, json.dumps(rows[offset : offset + self.page]).encode()


class _Handler(BaseHTTPRequestHandler):
    server: StandIn

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?offset=")
        self.server.asked.append(path)
        self.server.headers.append(self.headers)
        self._send(*self.server.answer(path, int(query or 0)))

    def do_POST(self) -> None:
        self.server.stored.append(self.rfile.read(int(self.headers["Content-Length"])))
        self._send(*self.server.store_answer)

    def _send(self, status: int, kind: str, body: bytes, cut: str = "") -> None:
        """The whole body, or half of it: with the length of the whole ("length") or without ("no length")."""
        self.send_response(status)
        self.send_header("Content-Type", kind)
        for name, value in self.server.more.items():
            self.send_header(name, value)
        if cut != "no length":
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)

    def log_message(self, *_: object) -> None:
        pass


def part(body: bytes) -> bytes:
    return b"--bound-1\r\nContent-Type: application/dicom\r\n\r\n" + body + b"\r\n--bound-1--\r\n"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    monkeypatch.setattr(dicomweb, "_WAIT_MS", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with StandIn(tmp_path / "server") as serving:
        thread = Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


def fetched(folder: Path) -> list[Dataset]:
    return sorted((pydicom.dcmread(file) for file in folder.iterdir()), key=lambda image: image.SOPInstanceUID)


def test_the_mr_series_are_fetched_and_what_is_there_stays(
    server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    folder = tmp_path / "fetched"
    assert DicomWeb(server.url + "/").fetch(STUDY, folder) == (5, 0)
    assert fetched(folder) == sorted(server.images, key=lambda image: image.SOPInstanceUID)
    assert {file.name for file in folder.iterdir()} == {f"{image.SOPInstanceUID}.dcm" for image in server.images}
    assert len(read_headers(folder)) == 5
    assert not any("1.2.3" in path for path in server.asked)  # the report
    assert server.headers[-1]["Accept-Encoding"] == "identity"  # Orthanc compresses four times longer than it sends
    assert server.headers[0]["Host"] == f"127.0.0.1:{server.server_port}"
    server.asked.clear()
    next(folder.iterdir()).unlink()
    assert DicomWeb(server.url).fetch(STUDY, folder) == (1, 4)
    assert sum("/instances/" in path for path in server.asked) == 1
    for word in (NAME, PATIENT, DAY, STUDY):
        assert word not in caplog.text


@pytest.mark.parametrize("page", [1, 2])
def test_lists_may_come_in_pages(server: StandIn, tmp_path: Path, page: int) -> None:
    server.page = page
    assert DicomWeb(server.url).fetch(STUDY, tmp_path / "fetched") == (5, 0)


@pytest.mark.parametrize("status", [404, 501])
def test_a_server_that_searches_nothing_tells_the_instances_by_their_headers(
    server: StandIn, tmp_path: Path, status: int
) -> None:
    server.changed["/series"] = (status, "text/plain", b"")
    assert DicomWeb(server.url).fetch(STUDY, tmp_path / "fetched") == (5, 0)
    assert fetched(tmp_path / "fetched") == sorted(server.images, key=lambda image: image.SOPInstanceUID)


@pytest.mark.parametrize("kind", [PARTS, "application/dicom"])
@pytest.mark.parametrize("cut", ["length", "no length"])
def test_what_is_cut_off_is_not_kept_and_the_next_run_goes_on(
    server: StandIn, tmp_path: Path, cut: str, kind: str
) -> None:
    last, folder = str(server.images[-1].SOPInstanceUID), tmp_path / "fetched"
    body = server.bodies[-1] if kind == "application/dicom" else part(server.bodies[-1])
    server.changed[last] = (200, kind, body, cut)
    with pytest.raises(BundleError, match="ends early") as error:
        DicomWeb(server.url).fetch(STUDY, folder)
    assert all(text in str(error.value) for text in (server.url, last, "it goes on where it ended"))
    assert sum(path.endswith(last) for path in server.asked) == 3  # it was tried again
    assert {file.name for file in folder.iterdir()} == {f"{image.SOPInstanceUID}.dcm" for image in server.images[:-1]}
    server.changed[last] = (200, kind, body)
    assert DicomWeb(server.url).fetch(STUDY, folder) == (1, 4)
    assert fetched(folder) == sorted(server.images, key=lambda image: image.SOPInstanceUID)


@pytest.mark.parametrize(
    ("path", "answer", "message"),
    [
        ("", (404, "text/html", b"<html>"), r"answers 404 \(Not Found\)[\s\S]*check the UID \(--study\) and"),
        ("/series", (200, JSON, b"[]"), "no study"),
        ("/series", (204, JSON, b""), "no study"),
        ("", HTML, r"a web page[\s\S]*the address of a DICOMweb service"),
        ("/series", (200, JSON, b'[{"0020000E": {"Val'), "no JSON or ends early"),
        ("/series", (401, "text/plain", b""), r"answers 401 \(Unauthorized\)[\s\S]*give --dicomweb_user NAME"),
        ("/series", (403, "text/plain", b""), r"answers 403 \(Forbidden\)[\s\S]*DICOMWEB_PASSWORD"),
        ("/series", (503, "text/plain", b""), r"answers 503[\s\S]*try again later"),
        ("/series", (200, JSON, b'[{"0020000E": {"vr": "UI", "Value": ["../../x"]}}]'), "which is no UID"),
        ("/instances", (200, JSON, b'[{"00080018": {"vr": "UI", "Value": ["/etc/x"]}}]'), "which is no UID"),
        ("/instances", (200, JSON, b'["x"]'), "which is no UID"),
        ("/series", (200, JSON, b'[{"00080060": {"vr": "CS", "Value": ["CT"]}, "0020000E": {"Value": ["1.2"]}}]'),
         r"without MR images \(it has: CT\)"),
        (uid("study", "T1", 0), HTML, "Unexpected media type"),
        (uid("study", "T1", 0), (200, PARTS, part(b"no DICOM")), "an answer that cannot be read"),
    ],
)  # fmt: skip
def test_what_is_no_study_is_told_with_address_and_uid(
    server: StandIn, tmp_path: Path, path: str, answer: tuple, message: str
) -> None:
    server.changed[path] = answer
    with pytest.raises(BundleError, match=message) as error:
        DicomWeb(server.url).fetch(STUDY, tmp_path / "fetched")
    assert server.url in str(error.value)
    assert STUDY in str(error.value)
    assert not (tmp_path / "fetched").exists()


def test_another_instance_than_the_one_asked_for_is_refused(server: StandIn, tmp_path: Path) -> None:
    server.changed[server.images[0].SOPInstanceUID] = (200, PARTS, part(server.bodies[1]))
    with pytest.raises(BundleError, match=f"instance {server.images[1].SOPInstanceUID} of study"):
        DicomWeb(server.url).fetch(STUDY, tmp_path / "fetched")
    assert not (tmp_path / "fetched").exists()


def test_a_server_that_does_not_run_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_WAIT_MS", 1)
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/dicom-web"
    with pytest.raises(BundleError, match=r"no answer when asked for study [\d.]+ \(.*refused\)") as error:
        DicomWeb(url).fetch(STUDY, tmp_path / "fetched")
    assert url in str(error.value)


def test_another_certificate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dicomweb, "_WAIT_MS", 1)

    def refuse(self: requests.Session, **settings: Any) -> None:
        assert self.verify is True
        raise requests.exceptions.SSLError("self-signed certificate")

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(BundleError, match=r"cannot be verified \(self-signed[\s\S]*REQUESTS_CA_BUNDLE"):
        DicomWeb("https://127.0.0.1/dicom-web").fetch(STUDY, tmp_path / "fetched")


@pytest.mark.parametrize(
    "url", ["pacs", "ftp://pacs/x", "file:///etc", "http://", "http://pacs:99999/x", "http://pacs/x?a=1", "True"]
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(BundleError, match="no such address"):
        DicomWeb(url)


def test_the_password_is_from_the_environment_alone(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    monkeypatch.delenv(PASSWORD, raising=False)
    with pytest.raises(BundleError, match=f"user me without a password[\\s\\S]*{PASSWORD}"):
        DicomWeb(server.url, "me")
    with pytest.raises(BundleError, match="a user in the address") as told:
        DicomWeb("http://me:s3cret@pacs/dicom-web")
    assert "s3cret" not in str(told.value)
    monkeypatch.setenv(PASSWORD, "s3crét")
    DicomWeb(server.url, "me").fetch(STUDY, tmp_path / "fetched")
    expected = "Basic " + base64.b64encode("me:s3crét".encode()).decode()
    assert {headers["Authorization"] for headers in server.headers} == {expected}
    server.changed[""] = (401, "text/plain", b"")
    with pytest.raises(BundleError, match=r"check the user \(me\)") as refused:
        DicomWeb(server.url, "me").fetch(STUDY, tmp_path / "other")
    assert "s3cr" not in str(refused.value) + caplog.text
    assert expected not in caplog.text


def test_a_folder_with_other_files_is_refused(server: StandIn, tmp_path: Path) -> None:
    (tmp_path / "fetched").mkdir()
    (tmp_path / "fetched" / "other.dcm").write_bytes(b"")
    with pytest.raises(BundleError, match=r"1 file\(s\) that are not of the study on the server, e.g. other.dcm"):
        DicomWeb(server.url).fetch(STUDY, tmp_path / "fetched")
    with pytest.raises(BundleError, match=r"--study '1\.2/"):
        DicomWeb(server.url).fetch("1.2/../3", tmp_path / "new")


def stored(**sequences: list[Dataset]) -> bytes:
    answer = Dataset()
    for keyword, items in sequences.items():
        setattr(answer, keyword, items)
    return answer.to_json().encode()


def item(instance: str, **values: int) -> Dataset:
    out = Dataset()
    out.ReferencedSOPInstanceUID = instance
    for keyword, value in values.items():
        setattr(out, keyword, value)
    return out


def test_what_is_stored_is_the_file(server: StandIn, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    own = str(server.images[0].SOPInstanceUID)
    file = tmp_path / "server" / "IM0000.dcm"
    server.store_answer = (200, f"{JSON}; charset=utf-8", stored(ReferencedSOPSequence=[item(own)]))
    DicomWeb(server.url).store(file)
    sent = server.stored[0].split(b"\r\n\r\n", 1)[1].rpartition(b"\r\n--")[0]
    assert sent == server.bodies[0]
    server.store_answer = (202, JSON, stored(ReferencedSOPSequence=[item(own, WarningReason=0xB000)]))
    DicomWeb(server.url).store(file)
    assert "warning 0xB000" in caplog.text


@pytest.mark.parametrize("code", [0x0111, 45070])
def test_what_is_there_already_is_no_failure(server: StandIn, tmp_path: Path, code: int) -> None:
    own = str(server.images[0].SOPInstanceUID)
    server.store_answer = (409, JSON, stored(FailedSOPSequence=[item(own, FailureReason=code)]))
    DicomWeb(server.url).store(tmp_path / "server" / "IM0000.dcm")
    assert len(server.stored) == 1


@pytest.mark.parametrize(
    ("status", "kind", "body", "message"),
    [
        (409, JSON, stored(FailedSOPSequence=[item("1.2", FailureReason=0x0122)]), r"SOP class\) \(0x0122\)"),
        (202, JSON, stored(FailedSOPSequence=[item("1.2", FailureReason=0xA701)]), r"no room for it \(0xA701\)"),
        (202, JSON, stored(FailedSOPSequence=[item("1.2", FailureReason=7)]), r"a reason of its own \(0x0007\)"),
        (409, "text/plain", b"", r"answers 409 \(Conflict\)"),
        (200, JSON, stored(ReferencedSOPSequence=[item("1.2")]), "does not name"),
        (*HTML, "does not name"),
        (401, "text/plain", b"", "give --dicomweb_user"),
    ],
)
def test_what_the_server_does_not_keep_is_told_by_name(
    server: StandIn, tmp_path: Path, status: int, kind: str, body: bytes, message: str
) -> None:
    server.store_answer = (status, kind, body)
    file = tmp_path / "server" / "IM0000.dcm"
    with pytest.raises(BundleError, match=message) as error:
        DicomWeb(server.url).store(file)
    assert server.url in str(error.value)
    assert file.name in str(error.value)


def test_a_server_that_tells_a_part_of_a_list_each_time_is_refused(server: StandIn, tmp_path: Path) -> None:
    rows = [image.to_json_dict(bulk_data_threshold=100) for image in server.images[:2]]
    server.changed["/instances"] = (200, JSON, json.dumps(rows).encode())  # whatever the offset
    server.more["Warning"] = '299 stand-in "There are additional results that can be requested"'
    with pytest.raises(BundleError, match="the first 2 rows of a list, and the same again"):
        DicomWeb(server.url).fetch(STUDY, tmp_path / "out")


def test_nothing_goes_to_an_address_that_nobody_gave(server: StandIn, tmp_path: Path) -> None:
    file = save([server.images[0]], tmp_path / "own")[0]
    server.store_answer = (307, JSON, b"")
    server.more["Location"] = f"{server.url}/elsewhere"
    with pytest.raises(BundleError, match=f"(?s)a redirect to {server.url}/elsewhere.*give that address"):
        DicomWeb(server.url).store(file)
    assert len(server.stored) == dicomweb._TRIES


def test_no_password_of_another_program_is_sent(
    server: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login joe password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    DicomWeb(server.url).fetch(STUDY, tmp_path / "out")
    assert not any("Authorization" in headers for headers in server.headers)
