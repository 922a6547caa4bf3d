"""Cases that are refused while they are read, among others."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader
from monai.engines import SupervisedEvaluator
from monai.transforms import Compose, Lambda

from bundlekit.errors import BundleError, Finding, bundle_error_in
from bundlekit.inference.unreadable import CaseDataset, SkipUnreadable


def read(case: dict[str, Any]) -> dict[str, Any]:
    if case["bad"]:
        raise BundleError(Finding(case["case"], "damaged", "a whole file", "copy it again"))
    return {**case, "image": torch.ones(1, 4, 4, 4)}


def evaluator(bad: list[bool], unreadable: SkipUnreadable, workers: int = 0) -> SupervisedEvaluator:
    cases = [{"case": f"case{index}", "bad": value} for index, value in enumerate(bad)]
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(CaseDataset(cases, Compose(Lambda(read))), batch_size=1, num_workers=workers),
        network=torch.nn.Identity(),
        iteration_update=unreadable,
    )


@pytest.mark.parametrize("workers", [0, 1])
def test_the_others_are_computed(workers: int) -> None:
    unreadable = SkipUnreadable()
    engine = evaluator([False, True, False, True], unreadable, workers)
    done: list[str] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: done.extend(item["case"] for item in e.state.batch))
    for _ in range(2):  # a second run counts anew
        done.clear()
        engine.run()
        assert done == ["case0", "case2"]
        with pytest.raises(BundleError, match="2 of 4 cases were refused, the others are done:\ncase1\n") as caught:
            unreadable.report()
        assert "case3\n    found:    damaged" in str(caught.value)


def test_nothing_else_is_claimed_where_all_are_bad() -> None:
    unreadable = SkipUnreadable()
    evaluator([True], unreadable).run()
    with pytest.raises(BundleError, match=r"^case0\n    found:    damaged"):
        unreadable.report()


def test_all_is_well() -> None:
    unreadable = SkipUnreadable()
    evaluator([False, False], unreadable).run()
    unreadable.report()


def test_the_first_one_ends_it_on_demand(monkeypatch: pytest.MonkeyPatch) -> None:
    case = {"case": "case0", "bad": True}
    with pytest.raises(RuntimeError, match="applying transform"):
        CaseDataset([case], Compose(Lambda(read)), keep_going=False)[0]
    monkeypatch.setenv("MONAI_DEBUG", "True")  # whoever debugs wants the traceback
    with pytest.raises(BundleError):
        CaseDataset([case], Compose(Lambda(read)))[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_holds_for_every_case_ends_it(workers: int) -> None:
    def fail_always(case: object) -> object:
        raise BundleError("no weights", ends_run=True)

    unreadable = SkipUnreadable()
    engine = evaluator([False, False], unreadable, workers)
    engine.data_loader.dataset.transform = Compose(Lambda(fail_always))
    with pytest.raises(RuntimeError) as caught:
        engine.run()
    assert bundle_error_in(caught.value) == "no weights"
    assert not unreadable.messages


def test_other_errors_are_not_passed_over() -> None:
    def broken(case: object) -> object:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError):
        CaseDataset([1], broken)[0]


class NaNOf:
    """An inferer that fails for some volumes, in the order of the cases."""

    def __init__(self, failing: list[bool], **how: bool) -> None:
        self.failing, self.how = iter(failing), how

    def __call__(self, inputs: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        if next(self.failing):
            raise BundleError("the network gives NaN", **self.how)
        return inputs


def test_a_case_without_a_mask_is_passed_over() -> None:
    unreadable = SkipUnreadable()
    engine = evaluator([False, False, True, False], unreadable)
    engine.inferer = NaNOf([False, True, False], one_case=True)
    done: list[str] = []
    engine.add_event_handler(Events.ITERATION_COMPLETED, lambda e: done.extend(item["case"] for item in e.state.batch))
    engine.run()
    assert done == ["case0", "case3"]
    with pytest.raises(
        BundleError, match=r"2 of 4 cases were refused, the others are done:\ncase1: the network gives NaN\ncase2"
    ):
        unreadable.report()


@pytest.mark.parametrize("how", ["every case", "scores", "debugging"])
def test_what_cannot_be_computed_ends_the_run_elsewhere(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = evaluator([False, False], SkipUnreadable())
    engine.inferer = NaNOf([True], one_case=how != "every case")
    engine.data_loader.dataset.keep_going = how != "scores"
    if how == "debugging":
        monkeypatch.setenv("MONAI_DEBUG", "True")
    with pytest.raises(BundleError, match=r"^case0: the network gives NaN$"):
        engine.run()
