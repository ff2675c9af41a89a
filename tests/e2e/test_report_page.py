"""The page of a report in a real browser: it asks for nothing, sorts, filters, opens layers, follows the scheme."""

from __future__ import annotations

import csv
import io
import xml.dom.minidom
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import LAPTOP, PHONE, chromium, opened
from flow import normal
from many_nodes import deep_resnet

import amct_onnx
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.report.gather import gather
from amct_onnx.report.network_map import network_map
from amct_onnx.report.render import render
from amct_onnx.report.run_data import RunData

SAMPLE = Path(__file__).resolve().parents[2] / "samples" / "resnet-101"
LARGEST, SLOWEST = 3_000_000, 1000  # bytes, milliseconds


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    yield from chromium()


@pytest.fixture(scope="module")
def small() -> RunData:
    """Four residual blocks, one layer of them in float."""
    data = normal(0, 32, 8, 6, 6)
    result = amct_onnx.quantize(deep_resnet(4), data, effort="fast", skip_layers=["Conv_8"])
    return gather(result)


@pytest.fixture(scope="module")
def page_file(small: RunData, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("small"), [small], ["small"])


def write(folder: Path, runs: list[RunData], names: list[str]) -> Path:
    file = folder / "report.html"
    file.write_text(render(runs, names), encoding="utf-8")
    assert file.stat().st_size < LARGEST
    return file


def names_shown(page: Any) -> list[str]:
    shown: list[str] = page.eval_on_selector_all("#table tbody tr", "rows => rows.map(row => row.dataset.layer)")
    return shown


def check_readable(browser: Any, file: Path) -> None:
    """Nothing is complained of or asked for, in any scheme and at any size, and it opens in a moment."""
    fastest = float("inf")
    for size in (LAPTOP, PHONE):
        for scheme in ("light", "dark"):
            with opened(browser, file, size, scheme) as found:
                assert found.clean(), (found.complaints, found.requests)
                assert found.overflow() <= 0
                fastest = min(fastest, found.milliseconds())
                boxes = found.page.locator("#map .box").count()
                assert 1 <= boxes <= 60
                assert found.page.locator("#verdict").inner_text()
    assert fastest < SLOWEST


def test_the_page_says_which_layer_hurts_most_and_what_to_try(browser: Any, page_file: Path, small: RunData) -> None:
    worst = max(small.layers, key=lambda layer: layer.share or 0)
    with opened(browser, page_file) as found:
        assert f"{worst.name} ({worst.op_type}) hurts most" in found.page.inner_text("#verdict")
        assert worst.name in found.page.inner_text("#worst li:first-child")
        assert "--effort default" in found.page.inner_text("#advice")


def test_the_page_is_readable_at_any_size_and_in_any_scheme(browser: Any, page_file: Path) -> None:
    check_readable(browser, page_file)


def test_colours_follow_the_scheme(browser: Any, page_file: Path) -> None:
    colours = []
    for scheme in ("light", "dark"):
        with opened(browser, page_file, scheme=scheme) as found:
            colours.append(found.page.evaluate("getComputedStyle(document.body).backgroundColor"))
            ink, paper = found.page.evaluate(
                "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"
            )
            assert contrast(ink, paper) > 7
    assert colours[0] != colours[1]


def contrast(one: str, two: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(part) / 255 for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
        linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return float(np.dot(linear, [0.2126, 0.7152, 0.0722]))

    high, low = sorted((luminance(one), luminance(two)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_the_table_sorts_by_each_column(browser: Any, page_file: Path, small: RunData) -> None:
    by_name = {layer.name: layer for layer in small.layers}
    with opened(browser, page_file) as found:
        first = names_shown(found.page)
        shares = [by_name[name].share for name in first]
        measured = [share for share in shares if share is not None]
        assert measured == sorted(measured, reverse=True)
        assert shares == [*measured, *[None] * (len(shares) - len(measured))]  # what is not known comes last
        found.page.click('[data-sort="alone"]')
        levels = [by_name[name].alone for name in names_shown(found.page) if by_name[name].alone is not None]
        assert levels == sorted(levels)
        assert found.page.get_attribute("th:has([data-sort='alone'])", "aria-sort") == "ascending"
        found.page.keyboard.press("Enter")  # the heading has kept the focus
        levels = [by_name[name].alone for name in names_shown(found.page) if by_name[name].alone is not None]
        assert levels == sorted(levels, reverse=True)
        found.page.click('[data-sort="name"]')
        assert names_shown(found.page)[:3] == ["Add_5", "Add_11", "Add_17"]
        assert found.clean()


def test_the_table_searches_and_filters(browser: Any, page_file: Path, small: RunData) -> None:
    with opened(browser, page_file) as found:
        found.page.fill("#search", "conv float")
        assert names_shown(found.page) == ["Conv_8"]
        found.page.fill("#search", "")
        found.page.select_option("#filter-type", "Add")
        assert sorted(names_shown(found.page)) == sorted(one.name for one in small.layers if one.op_type == "Add")
        found.page.select_option("#filter-kind", "float")
        floats = {one.name for one in small.layers if one.op_type == "Add" and not one.quantized}
        assert set(names_shown(found.page)) == floats
        found.page.select_option("#filter-type", "")
        assert "of " in found.page.inner_text("#table-note")
        found.page.fill("#search", "nothing of that name")
        assert names_shown(found.page) == []
        assert found.clean()


@pytest.mark.parametrize("size", [LAPTOP, PHONE])
def test_a_layer_opens_from_the_table_and_the_map_and_closes_with_escape(
    browser: Any, page_file: Path, size: tuple[int, int]
) -> None:
    with opened(browser, page_file, size) as found:
        panel = found.page.locator("#panel")
        assert panel.is_hidden()
        found.page.click("tr[data-layer='Conv_2'] button")
        assert panel.locator("h2").inner_text() == "Conv_2"
        assert "cosine" in panel.inner_text()
        assert panel.locator("svg").count() == 3  # what it reads and makes, and its weight
        assert found.overflow() <= 0
        found.page.click("#panel [aria-label='The next layer']")
        assert panel.locator("h2").inner_text() == "Conv_4"
        found.page.keyboard.press("Escape")
        assert panel.is_hidden()
        box = found.page.locator("#map .box[data-name='Conv_8']")
        box.focus()
        found.page.keyboard.press("Enter")
        assert panel.locator("h2").inner_text() == "Conv_8"
        assert "in float" in panel.inner_text()
        assert found.clean()


def test_the_map_zooms_and_moves_by_wheel_and_keys(browser: Any, page_file: Path) -> None:
    with opened(browser, page_file) as found:

        def view() -> str:
            transform: str = found.page.get_attribute("#map svg > g", "transform")
            return transform

        found.page.locator("#map").scroll_into_view_if_needed()
        before = view()
        box = found.page.locator("#map").bounding_box()
        found.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        found.page.mouse.wheel(0, -240)
        found.page.wait_for_function(
            "t => document.querySelector('#map svg > g').getAttribute('transform') !== t", arg=before
        )
        found.page.locator("#map svg").focus()
        seen = [view()]
        for key in ("+", "-", "ArrowLeft", "ArrowDown"):
            found.page.keyboard.press(key)
            assert view() != seen[-1], key
            seen.append(view())
        found.page.keyboard.press("0")
        assert view() == before
        found.page.mouse.down()
        found.page.mouse.move(box["x"] + box["width"] / 2 + 80, box["y"] + box["height"] / 2 + 30, steps=4)
        found.page.mouse.up()
        assert view() != before
        assert found.page.locator("#panel").is_hidden()  # to drag is not to click
        assert found.clean()


def test_blocks_open_and_fold(browser: Any, tmp_path: Path) -> None:
    file = write(tmp_path, [many(250)], ["deep"])
    with opened(browser, file) as found:
        boxes = found.page.locator("#map .box")
        start = boxes.count()
        assert start < 60
        found.page.locator("#map .box[data-block]").first.press("Enter")
        assert boxes.count() > start
        found.page.click("#map-fold")
        assert boxes.count() <= 25
        found.page.click("#map-unfold")
        assert boxes.count() == 1503
        found.page.click("#map-fold")
        found.page.fill("#search", "Conv_904")
        found.page.click("tr[data-layer='Conv_904'] button")  # its block opens
        assert found.page.locator("#map .box[data-name='Conv_904']").count() == 1
        assert found.clean()


def test_layers_and_drawings_are_saved(browser: Any, page_file: Path, small: RunData) -> None:
    with opened(browser, page_file) as found:

        def saved(button: str) -> str:
            with found.page.expect_download() as download:
                found.page.click(button)
            return Path(download.value.path()).read_text(encoding="utf-8")

        rows = list(csv.DictReader(io.StringIO(saved("#save-csv"))))
        assert [row["Layer"] for row in rows] == [layer.name for layer in small.layers]
        told = {row["Layer"]: row for row in rows}
        for layer in small.layers:
            if layer.alone is not None:
                assert float(told[layer.name]["Alone"]) == pytest.approx(layer.alone, rel=1e-4)
        for button in ("#map-svg", "#along-svg"):
            drawing = xml.dom.minidom.parseString(saved(button)).documentElement
            assert drawing.tagName == "svg"
            assert "--paper:#" in drawing.getAttribute("style")
        assert '"schema":1' in saved("#save-json")


def test_two_runs_stand_side_by_side(browser: Any, small: RunData, tmp_path: Path) -> None:
    other = gather(amct_onnx.quantize(deep_resnet(4), normal(0, 32, 8, 6, 6), effort="fast", target="tensorrt"))
    file = write(tmp_path, [small, other], ["first", "second"])
    check_readable(browser, file)
    with opened(browser, file) as found:
        table = found.page.inner_text("#versus-table")
        assert "onnxruntime" in table
        assert "tensorrt" in table
        assert f"{small.accuracy.decibels:.1f} dB" in table
        assert f"{other.accuracy.decibels:.1f} dB" in table
        assert "Conv_8" in found.page.inner_text("#versus")  # in integers in one of them only
        found.page.click("#run-switch button:last-child")
        assert "tensorrt" in found.page.inner_text("#subtitle")
        found.page.click("tr[data-layer='Conv_2'] button")
        assert "run A: " in found.page.inner_text("#panel")
        assert found.clean()


def test_all_layers_are_printed(browser: Any, tmp_path: Path) -> None:
    file = write(tmp_path, [many(30)], ["deep"])
    with opened(browser, file) as found:
        assert len(names_shown(found.page)) == 40
        found.page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert len(names_shown(found.page)) > 40
        found.page.emulate_media(media="print", color_scheme="dark")
        assert found.page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
        assert not found.page.is_visible("nav.contents")


def test_names_cannot_break_the_page(browser: Any, small: RunData, tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>&\u2028"
    layers = (replace(small.layers[0], name=bad), *small.layers[1:])
    file = write(tmp_path, [replace(small, layers=layers)], [bad])
    with opened(browser, file) as found:
        assert found.clean(), found.complaints
        assert found.page.locator("img").count() == 0
        assert bad.split("\u2028", maxsplit=1)[0] in found.page.inner_text("#table")


def many(blocks: int) -> RunData:
    """The run of a small network, told of one with many more blocks: each layer has what a layer of the same place in
    its block was measured to have."""
    few = gather(amct_onnx.quantize(deep_resnet(3), normal(0, 8, 8, 6, 6), effort="fast"))
    known = {layer.name: layer for layer in few.layers}
    drawn = network_map(FloatModel.open(deep_resnet(blocks)).prepared().model)
    layers = []
    for number, node in enumerate(drawn.nodes):
        kind, _, place = node.name.partition("_")
        like = known.get(f"{kind}_{int(place) % 18}" if place else node.name)
        if like is not None:
            layers.append(replace(like, name=node.name, node=number, source=(node.name,), share=1 / (number + 10)))
    facts = replace(few.model, nodes=len(drawn.nodes))
    return replace(few, model=facts, layers=tuple(layers), nodes=drawn.nodes, edges=drawn.edges, blocks=drawn.blocks)


def test_a_network_of_1500_nodes_is_readable(browser: Any, tmp_path: Path) -> None:
    check_readable(browser, write(tmp_path, [many(250)], ["deep"]))


# --- real models


def check_model(browser: Any, folder: Path, model: Path, data: Any, **how: Any) -> RunData:
    result = amct_onnx.quantize(str(model), data, effort="fast", **how)
    run = gather(result, result.save(folder / "m"), samples=result.judges[:2])
    check_readable(browser, write(folder, [run], [model.stem]))
    assert run.accuracy.sqnr is not None
    assert run.runtime is not None
    assert any(layer.kernels for layer in run.layers)
    return run


@pytest.mark.slow
def test_resnet_101(browser: Any, tmp_path: Path) -> None:
    images = SAMPLE / "data" / "images"
    run = check_model(browser, tmp_path, SAMPLE / "model" / "resnet-101.onnx", str(images), images="torch", limit=8)
    assert len(run.layers) > 100


@pytest.mark.slow
def test_mobilenet_v2(browser: Any, tmp_path: Path, test_data: Callable[..., Path]) -> None:
    model, images = test_data("models", "mobilenetv2_tv1.onnx"), test_data("images", "imagenet1000")
    check_model(browser, tmp_path, model, str(images), images="torch", limit=8)


@pytest.mark.slow
def test_a_detector(browser: Any, tmp_path: Path, test_data: Callable[..., Path]) -> None:
    model, images = test_data("models", "yolox_nano.onnx"), test_data("images", "coco128")
    check_model(browser, tmp_path, model, str(images), images="yolox", limit=4)


@pytest.mark.slow
def test_a_text_encoder(browser: Any, tmp_path: Path, test_data: Callable[..., Path]) -> None:
    model = test_data("models", "minilm_l6.onnx")
    draw = np.random.default_rng(0)
    feeds = [
        {"input_ids": draw.integers(1000, 20000, (1, 16)), "attention_mask": np.ones((1, 16), np.int64)}
        for _ in range(8)
    ]
    check_model(browser, tmp_path, model, feeds)
