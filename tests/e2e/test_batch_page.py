"""The page over all jobs of a batch in a real browser: it asks for nothing, sorts, filters, leads to the reports."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import onnx
import pytest
from browser import LAPTOP, PHONE, chromium, opened
from flow import images, two_convs

import amct_onnx
from amct_onnx.report.batch_page import batch_page, write_batch_page
from amct_onnx.values.accuracy import Accuracy
from amct_onnx.values.batch_result import JobResult

ACCURACY = Accuracy(decibels=25.0, samples=16, same_top1=0.9375)


def job(name: str, **more: Any) -> JobResult:
    given = {"target": "onnxruntime", "model": f"{name}.onnx", "state": "done", **more}
    return JobResult(name=name, **given)


JOBS = (
    job("m10", accuracy=ACCURACY, seconds=9.5, bytes_before=14_000_000, bytes_after=3_600_000, speedup=2.1),
    job("m9", target="ascend", seconds=100.0, quantized=9, candidates=12, warnings=("Only 3 samples calibrate it.",)),
    job("<b>m1</b>", state="failed", error="broken.onnx is <not> a model", because="the model is another file now"),
    job("m2", state="kept", met=False, accuracy=Accuracy(decibels=8.0, samples=4), seconds=20.0),
    job("m3", state="waiting"),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture
def page_file(tmp_path: Path) -> Path:
    write_batch_page(JOBS, tmp_path / "night.html")
    return tmp_path / "night.html"


def shown(page: Any, column: int = 0) -> list[str]:
    script = "(rows, n) => rows.filter(row => !row.hidden).map(row => row.cells[n].innerText.trim())"
    found: list[str] = page.eval_on_selector_all("#table tbody tr", script, column)
    return found


def test_it_is_readable_at_any_size_and_in_any_scheme(browser: Any, page_file: Path) -> None:
    for size in (LAPTOP, PHONE):
        for scheme in ("light", "dark"):
            with opened(browser, page_file, size, scheme) as found:
                assert found.clean(), (found.complaints, found.requests)
                assert found.overflow() <= 0
                assert shown(found.page) == [one.name for one in JOBS]
                assert found.page.title() == "night: 5 jobs"


def test_what_jobs_say_is_text(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as found:
        notes = found.page.inner_text("#table tbody tr:nth-child(3)")
        assert "<b>m1</b>" in notes
        assert "Failed: broken.onnx is <not> a model" in notes
        assert "The target of accuracy is not met." in found.page.inner_text("#table tbody tr:nth-child(4)")
        assert "Only 3 samples" in found.page.inner_text("#table tbody tr:nth-child(2)")


def test_the_table_sorts_by_each_column(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as found:
        page = found.page
        page.click('[data-sort="name"]')
        assert shown(page) == ["<b>m1</b>", "m2", "m3", "m9", "m10"]
        assert page.get_attribute("th:has([data-sort='name'])", "aria-sort") == "ascending"
        page.click('[data-sort="seconds"]')
        assert shown(page)[:3] == ["m9", "m2", "m10"]  # the longest first, and what is not known last
        page.keyboard.press("Enter")  # the heading has kept the focus
        assert shown(page)[:3] == ["m10", "m2", "m9"]
        page.click('[data-sort="accuracy"]')
        assert shown(page)[:2] == ["m2", "m10"]
        for key in ("target", "state", "top", "before", "after", "speed", "float", "report", "notes"):
            page.click(f'[data-sort="{key}"]')
            assert sorted(shown(page)) == sorted(one.name for one in JOBS)
        assert found.clean()


def test_the_table_searches_and_filters(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as found:
        page = found.page
        page.select_option("#filter-state", "failed")
        assert shown(page) == ["<b>m1</b>"]
        assert "1 of 5 jobs" in page.inner_text("#table-note")
        page.select_option("#filter-state", "")
        page.fill("#search", "ascend m9")
        assert shown(page) == ["m9"]


@pytest.mark.slow
def test_it_leads_to_the_report_of_each_job(browser: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    onnx.save(two_convs(), "m.onnx")
    np.save("x.npy", images(0, 16))
    table = {"model": "m.onnx", "data": "x.npy", "save_path": "out put/m #1", "effort": "fast"}
    result = amct_onnx.batch({"job": [{**table, "target": ["onnxruntime", "ascend"]}]}, progress=False)
    assert [Path(job.report).exists() for job in result.jobs] == [True, True]
    with opened(browser, tmp_path / result.page) as found:
        links = found.page.eval_on_selector_all("#table a", "links => links.map(link => link.href)")
        assert [Path(unquote(urlparse(link).path)) for link in links] == [
            (tmp_path / job.report).resolve() for job in result.jobs
        ]
        found.page.click("#table a >> nth=0")
        found.page.wait_for_selector("html[data-ready] #verdict")
        assert "m" in found.page.title()


def test_it_says_how_many_jobs_are_in_each_state() -> None:
    text = batch_page(JOBS, "night.html")
    assert [text.count(f'data-state="{state}"') for state in ("done", "kept", "failed", "waiting")] == [2, 1, 1, 1]
    assert text.count('<div class="tile">') == 4
    assert 'class="big bad">1<' in text
