"""Tests of the messages: found in whatever MONAI and PyTorch wrap them, and printed alone."""

from __future__ import annotations

import logging
import os
import pickle
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ignite.engine import Engine
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader, Dataset
from monai.transforms import Compose, Identityd, Lambda

from brats_resunet.network import ResUNet
from bundlekit import errors
from bundlekit.brats.cases import find_cases
from bundlekit.brats.reading import LoadCased
from bundlekit.errors import BundleError, Finding, bundle_error_in
from tests.bundlekit.conftest import write_case

ONE = Finding("a.nii.gz", "2 channels", "4 channels", "add them")
TWO = Finding("b.nii.gz", "5", "only 0, 1, 2, 4", "mend it")


def raised(function: Callable[[], Any]) -> BaseException:
    try:
        function()
    except BaseException as error:
        return error
    raise AssertionError("nothing was raised")


def fail(*_: object) -> None:
    raise BundleError([ONE, TWO])


# --- what a message says ----------------------------------------------------------------------------------------------


def test_finding_has_four_parts_in_order() -> None:
    assert re.fullmatch(r"a\.nii\.gz\n *found: *2 channels\n *expected: *4 channels\n *fix: *add them", str(ONE))


@pytest.mark.parametrize(
    ("argument", "findings", "message"),
    [
        (ONE, [ONE], str(ONE)),
        ([ONE, TWO], [ONE, TWO], f"{ONE}\n{TWO}"),
        ((finding for finding in (ONE, TWO)), [ONE, TWO], f"{ONE}\n{TWO}"),
        ("nothing given", [], "nothing given"),
        ([], [], ""),
    ],
)
def test_error_of_findings_or_of_a_message(argument: Any, findings: list[Finding], message: str) -> None:
    error = BundleError(argument)
    assert isinstance(error, ValueError)
    assert error.findings == findings
    assert str(error) == message
    assert str(pickle.loads(pickle.dumps(error))) == message  # from another process


# --- finding it -------------------------------------------------------------------------------------------------------


def caused() -> None:
    try:
        fail()
    except BundleError as error:
        raise RuntimeError("applying transform") from error


def in_context() -> None:
    try:
        fail()
    except BundleError:
        raise KeyError("other")  # noqa: B904


def hidden() -> None:
    try:
        fail()
    except BundleError:
        raise KeyError("other") from None


def twice() -> None:
    try:
        caused()
    except RuntimeError as error:
        raise RuntimeError("evaluating expression") from error


def instantiated() -> None:
    config = {"load": {"_target_": f"{__name__}.fail"}, "both": "$[@load, @load]", "outer": "$len(@both)"}
    ConfigParser(config).get_parsed_content("outer")


def in_an_engine() -> None:
    Engine(lambda engine, batch: fail()).run([0])


@pytest.mark.parametrize(
    "function",
    [
        fail,
        caused,
        in_context,
        hidden,
        twice,
        instantiated,
        in_an_engine,
        lambda: Compose([Identityd("image"), Lambda(fail)])({"image": 0}),
        lambda: Compose([Compose([Lambda(fail)])])({"image": 0}),
        lambda: Dataset([{"image": 0}], Compose([Lambda(fail)]))[0],
        lambda: CacheDataset([{"image": 0}], Compose([Lambda(fail)]), num_workers=2, progress=False),
        lambda: next(iter(DataLoader(Dataset([{"image": 0}], Lambda(fail)), num_workers=0))),
    ],
)
def test_message_is_found_whatever_is_around_it(function: Callable[[], Any]) -> None:
    assert bundle_error_in(raised(function)) == f"{ONE}\n{TWO}"


def test_message_comes_out_of_a_loaders_worker(tmp_path: Path) -> None:
    write_case(tmp_path / "case")
    (case,) = find_cases(tmp_path)
    Path(case["label"]).write_bytes(b"")
    Path(case["image"][1]).write_bytes(b"")
    batches = iter(DataLoader(Dataset([case], Compose([Compose([LoadCased()])])), num_workers=1))
    message = bundle_error_in(raised(lambda: next(batches)))
    assert message == str(raised(lambda: LoadCased()(case)))
    assert message is not None
    assert message.count("found:") == 2
    assert "Traceback" not in message


@pytest.mark.parametrize(
    "error",
    [
        None,
        RuntimeError("CUDA out of memory"),
        raised(lambda: int("x")),
        raised(lambda: ConfigParser({"a": "$1 / 0"}).get_parsed_content("a")),
        ValueError("made, but not raised here"),
    ],
)
def test_other_errors_have_no_message(error: BaseException | None) -> None:
    assert bundle_error_in(error) is None


@pytest.mark.parametrize(
    "text",
    [
        "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that ...",
        "DataLoader worker (pid(s) 7, 8) exited unexpectedly",
    ],
)
def test_a_loader_process_without_memory_gets_advice(text: str) -> None:
    for told in (text, f"Caught RuntimeError in DataLoader worker process 0.\nTraceback:\nRuntimeError: {text}\n"):
        message = bundle_error_in(RuntimeError(told))
        assert message is not None
        assert message.startswith(text)
        assert "--num_workers 0" in message
        assert "--shm-size" in message


def test_bad_argument_of_this_package_is_such_an_error() -> None:
    config = {"_target_": "brats_resunet.ResUNet", "channels": [8]}
    error = raised(lambda: ConfigParser({"network": config}).get_parsed_content("network"))
    assert bundle_error_in(error) == str(raised(lambda: ResUNet(channels=[8])))


def test_chain_that_bites_its_own_tail() -> None:
    first, second = RuntimeError("a"), RuntimeError("b")
    first.__cause__, second.__cause__ = second, first
    assert bundle_error_in(first) is None


# --- printing it ------------------------------------------------------------------------------------------------------

# the module alone, as part of its package: without the seconds that importing PyTorch takes
PROGRAM = f"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("bundlekit.errors", {errors.__file__!r})
errors = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = errors
spec.loader.exec_module(errors)
{{before}}
def work():
    try:
        {{error}}
    except ValueError as error:
        raise RuntimeError("applying transform") from error
work()
"""
BAD_INPUT = 'raise errors.BundleError(errors.Finding("a.nii.gz", "2 channels", "4 channels", "add them"))'


def run(before: str, error: str, debug: str | None) -> subprocess.CompletedProcess[str]:
    environment = {key: value for key, value in os.environ.items() if key != "MONAI_DEBUG"}
    if debug is not None:
        environment["MONAI_DEBUG"] = debug
    return subprocess.run(
        [sys.executable, "-c", PROGRAM.format(before=before, error=error)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("debug", [None, "", "False", "0"])
@pytest.mark.parametrize("times", [1, 2])
def test_message_alone_is_printed(debug: str | None, times: int) -> None:
    done = run("errors.show_clear_errors();" * times, BAD_INPUT, debug)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr == f"\nERROR: {ONE}\n(MONAI_DEBUG=True shows the traceback)\n"


@pytest.mark.parametrize(
    ("before", "error", "debug"),
    [
        ("errors.show_clear_errors()", BAD_INPUT, "True"),
        ("errors.show_clear_errors()", BAD_INPUT, "1"),
        ("errors.show_clear_errors()", "int('2 channels')", None),  # not the user's mistake: all of it
        ("", BAD_INPUT, None),  # a program that does not ask for it keeps its own way
    ],
    ids=["debug", "debug 1", "other error", "not asked for"],
)
def test_whole_traceback_is_printed(before: str, error: str, debug: str | None) -> None:
    done = run(before, error, debug)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "RuntimeError: applying transform" in done.stderr
    assert "2 channels" in done.stderr
    assert "ERROR:" not in done.stderr


def test_hook_of_the_program_is_kept_for_other_errors() -> None:
    before = "sys.excepthook = lambda *_: print('own hook'); errors.show_clear_errors()"
    assert run(before, "int('x')", None).stdout == "own hook\n"
    assert run(before, BAD_INPUT, None).stdout == ""


def test_logged_traces_of_bad_input_are_dropped_and_others_kept(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """MONAI's and Ignite's loggers print the trace of every exception that passes through them."""
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # restored afterwards
    factory = logging.getLogRecordFactory()
    monkeypatch.delenv("MONAI_DEBUG", raising=False)
    try:
        errors.show_clear_errors()
        for error in (BundleError("bad input"), KeyError("a defect")):
            try:
                raise error
            except Exception:
                logging.getLogger("ignite").exception("passed on")
                logging.getLogger("ignite").error(f"Engine run is terminating due to exception: {error}")
        logging.getLogger("mine").warning("%s: no picture: %s", "a", BundleError("bad scan"))
    finally:
        logging.setLogRecordFactory(factory)
    assert [bool(record.exc_info) for record in caplog.records] == [False, False, True, False, False]
    told = [record.getMessage() for record in caplog.records]
    assert told[:3] == ["the run ends with the error below"] * 2 + ["passed on"]
    assert told[3:] == ["Engine run is terminating due to exception: 'a defect'", "a: no picture: bad scan"]


def test_trace_of_a_loader_process_stays_out_of_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    before = logging.getLogRecordFactory()
    data = Dataset([0, 1], Compose([Lambda(fail)]))
    error = raised(lambda: list(DataLoader(data, num_workers=1)))
    assert "Traceback" in str(error), "PyTorch passes the trace on as text"
    try:
        errors.show_clear_errors()
        record = logging.getLogger("engine").makeRecord("engine", 40, "", 0, f"terminating: {error}", (), None)
        other = logging.getLogger("engine").makeRecord("engine", 40, "", 0, "two\nlines of %s", ("text",), None)
    finally:
        logging.setLogRecordFactory(before)
    assert record.getMessage() == "terminating: Caught RuntimeError in DataLoader worker process 0."
    assert other.getMessage() == "two\nlines of text"
