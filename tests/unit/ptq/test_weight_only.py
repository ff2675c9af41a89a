"""`quantize(..., weight_only=4)`: what is quantized and why not, what GPTQ and AdaRound gain, and what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr, two_convs

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentError, ModelError
from amct_onnx.numerics.settings import AdaRound
from amct_onnx.plan.float_model import FloatModel
from amct_onnx.ptq.weight_only import quantize_weights
from amct_onnx.targets.table import TARGETS
from amct_onnx.values.request import Request

WIDTH = 96
MODEL = build(
    """g (float[N,L,96] x) => (float[N,L,32] y) {
        [first] a = MatMul (x, w) [act] r = Relu (a) [second] b = MatMul (r, v)
        [turned] t = Transpose <perm=[0,2,1]> (b) [square] s = MatMul (b, t) [weigh] p = Softmax (s)
        [mix] m = MatMul (p, b) [third] y = MatMul (m, u) }""",
    w=normal(1, WIDTH, 64, scale=0.1),
    v=normal(2, 64, 48, scale=0.2),
    u=normal(3, 48, 32, scale=0.2),
)


def correlated(seed: int) -> np.ndarray:
    """Inputs whose channels are mixtures of a few, as those of trained networks are."""
    return (normal(seed, 2, 40, 24) @ normal(99, 24, WIDTH) + normal(seed + 1, 2, 40, WIDTH, scale=0.1)).astype(
        np.float32
    )


FEEDS = [{"x": correlated(seed)} for seed in range(10, 18)]


def run(model: Any, feeds: list[dict[str, np.ndarray]]) -> np.ndarray:
    source = model.SerializeToString() if isinstance(model, onnx.ModelProto) else str(model)
    session = ort.InferenceSession(source, providers=CPU)
    return np.concatenate([session.run(None, feed)[0] for feed in feeds])


def test_second_order_rounding_beats_the_nearest_on_other_data(tmp_path: Path) -> None:
    feeds, test = ([{"x": correlated(seed)} for seed in numbers] for numbers in (range(100, 132, 2), range(50, 54)))
    exact = run(MODEL, test)
    source = FloatModel.open(MODEL).prepared()
    learned = AdaRound(num_iteration=2000)
    found = {}
    for methods in ((), ("gptq",), ("adaround",)):
        result = quantize_weights(
            source, feeds, request=Request(), target=TARGETS["onnxruntime"], methods=methods, settings=learned
        )
        file = result.save(tmp_path / "-".join(["m", *methods]), inspect=False).files[0]
        found[methods] = sqnr(exact, run(file, test))
        assert [step.kept for step in result.steps] == [True] * len(methods)
    assert found["gptq",] > found[()] + 2
    assert found["adaround",] > found[()] + 1


def test_every_product_with_a_weight_is_decided_and_smaller(tmp_path: Path) -> None:
    result = amct_onnx.quantize(MODEL, FEEDS, weight_only=4, skip_layers=["third"])
    decisions = {d.layer: d.reason if not d.quantized else "" for d in result.decisions}
    assert decisions == {
        "first": "",
        "second": "",
        "square": "it multiplies two activations",
        "mix": "it multiplies two activations",
        "third": "it is switched off by the settings",
    }
    assert sorted(result.lowered.blocks) == ["first", "second"]
    saved = result.save(tmp_path / "m")
    assert saved.files == (str(tmp_path / "m_onnxruntime.onnx"),)
    assert saved.report is not None
    assert saved.report.bytes_after < 0.5 * saved.report.bytes_before
    kinds = [node.op_type for node in onnx.load(saved.files[0]).graph.node]
    assert kinds.count("MatMulNBits") == 2


def test_without_data_weights_are_rounded_to_the_nearest() -> None:
    result = amct_onnx.quantize(MODEL, None, weight_only=4)
    for weight, array in (("first", "w"), ("second", "v")):
        block = result.lowered.blocks[weight]
        rows = next(onnx.numpy_helper.to_array(i) for i in MODEL.graph.initializer if i.name == array).T
        assert np.array_equal(block.integers, block.grid.quantize(rows))


def test_the_command_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(MODEL, path)
    words = ["--weight_only", "4", "--block_size", "16", "--save_path", str(tmp_path / "command"), "--no_report"]
    assert main(["quantize", str(path), *words]) == 0
    called = amct_onnx.quantize(path, None, weight_only=4, block_size=16).save(tmp_path / "call", inspect=False)
    assert (tmp_path / "command_onnxruntime.onnx").read_bytes() == Path(called.files[0]).read_bytes()


def test_eight_bits_lose_less_than_four(tmp_path: Path) -> None:
    found = {}
    for bits in (4, 8):
        result = amct_onnx.quantize(MODEL, FEEDS, weight_only=bits, block_size=16)
        file = result.save(tmp_path / f"{bits}", inspect=False).files[0]
        found[bits] = sqnr(run(MODEL, FEEDS), run(file, FEEDS))
    assert found[8] > found[4] + 5


def test_equal_calls_give_equal_bytes_and_the_number_of_feeds_is_kept(tmp_path: Path) -> None:
    files = []
    for name in ("a", "b"):
        result = amct_onnx.quantize(MODEL, iter(FEEDS), weight_only=4)
        assert result.statistics.samples == sum(len(feed["x"]) for feed in FEEDS)
        files.append(Path(result.save(tmp_path / name, inspect=False).files[0]).read_bytes())
    assert files[0] == files[1]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"weight_only": 4, "target": "openvino"}, "weight_only needs target onnxruntime, got openvino"),
        ({"weight_only": 3}, "weight_only=3 bits: use 4 or 8"),
        ({"weight_only": 4, "block_size": 24}, "block_size=24 is no power of two from 16 on"),
        ({"weight_only": 4, "block_size": 8}, "block_size=8 is no power of two from 16 on"),
        ({"weight_only": 4, "block_size": 32.0}, "block_size=32.0 is no power of two"),
    ],
)
def test_what_the_operator_does_not_have_is_refused(arguments: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        amct_onnx.quantize(MODEL, FEEDS, **arguments)


def test_statistics_do_not_help() -> None:
    statistics = amct_onnx.quantize(MODEL, FEEDS).statistics
    with pytest.raises(ArgumentError, match="cannot use statistics"):
        amct_onnx.quantize(MODEL, statistics, weight_only=4)


def test_a_model_without_products() -> None:
    with pytest.raises(ModelError, match="no product whose weight could be quantized"):
        amct_onnx.quantize(two_convs(), [{"x": normal(0, 1, 3, 4, 4)}], weight_only=4)


def test_there_is_no_other_target() -> None:
    with pytest.raises(ArgumentError, match="no other target"):
        amct_onnx.quantize(MODEL, None, weight_only=4).to("openvino")


def mixed(seed: int, *shape: int) -> np.ndarray:
    """Rows of few strong directions and many weak ones, the same for every seed."""
    width = shape[-1]
    directions = normal(7, width, width) * (np.arange(1, width + 1) ** -0.5)[:, None]
    return (normal(seed, *shape) @ directions).astype(np.float32)


GUARDED = {
    "one product": ("g (float[N,64] x) => (float[N,24] y) { y = MatMul(x, W) }", (64,)),
    "Gemm, turned": ("g (float[N,64] x) => (float[N,24] y) { y = Gemm<transB=1>(x, T, b) }", (64,)),
    "two products of sequences": (
        "g (float[N,3,64] x) => (float[N,3,24] y) { a = MatMul(x, V) r = Relu(a) y = MatMul(r, W) }",
        (3, 64),
    ),
}


@pytest.mark.parametrize("kind", GUARDED)
@pytest.mark.parametrize("rows", [2, 4, 8, 16, 64])
@pytest.mark.parametrize("make", [normal, mixed])
def test_data_never_make_it_worse_than_the_nearest(kind: str, rows: int, make: Any, tmp_path: Path) -> None:
    """Few rows know few directions, and independent inputs nothing at all that helps."""
    text, shape = GUARDED[kind]
    weights = {"W": normal(1, 64, 24) / 8, "T": normal(1, 24, 64) / 8, "V": normal(2, 64, 64) / 8, "b": normal(3, 24)}
    model = build(text, **{name: array for name, array in weights.items() if f" {name}" in text.partition("{")[2]})
    data, test = make(10, rows, *shape), [{"x": make(20, 400, *shape)}]
    exact, found = run(model, test), {}
    for effort in ("fast", "default"):
        result = amct_onnx.quantize(model, data, weight_only=4, block_size=32, effort=effort)
        found[effort] = sqnr(exact, run(result.save(tmp_path / effort, inspect=False).files[0], test))
        assert [step.name.startswith("rounding by GPTQ") for step in result.steps] == [True] * (effort == "default")
    assert found["default"] > found["fast"] - 0.3
    if make is mixed and rows == 64:
        assert found["default"] > found["fast"] + 1


def test_fewer_than_four_samples_judge_nothing_and_the_step_says_so() -> None:
    result = amct_onnx.quantize(MODEL, FEEDS[0]["x"], weight_only=4)
    assert [str(step) for step in result.steps] == [
        "rounding by GPTQ: not tried, it takes four samples or more to judge it"
    ]


def test_best_tries_learned_rounding_as_well() -> None:
    model = build("g (float[N,16] x) => (float[N,8] y) { y = MatMul(x, W) }", W=normal(1, 16, 8))
    result = amct_onnx.quantize(model, mixed(3, 64, 16), weight_only=4, block_size=16, effort="best")
    assert [step.name in ("rounding by GPTQ", "rounding by AdaRound") for step in result.steps] == [True]
    assert result.steps[0].kept


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("data", [True, False])
@pytest.mark.parametrize(
    "text",
    [
        "g (float16[N,64] x) => (float16[N,24] y) { y = MatMul(x, W) }",
        "g (float16[N,64] x) => (float16[N,24] y) { y = Gemm<transB=1, alpha=0.5>(x, T, b) }",
        "g (float[N,64] x) => (float[N,24] y) { h = Cast<to=10>(x) z = MatMul(h, W) y = Cast<to=1>(z) }",
    ],
)
def test_float16(text: str, data: bool, bits: int, tmp_path: Path) -> None:
    arrays = {"W": normal(1, 64, 24) / 8, "T": normal(1, 24, 64) / 8, "b": normal(3, 24)}
    body = text.partition("{")[2]
    model = build(text, **{name: a.astype(np.float16) for name, a in arrays.items() if f" {name}" in body})
    x = mixed(4, 64, 64).astype(np.float16 if "float16[N,64]" in text else np.float32)
    result = amct_onnx.quantize(model, x if data else None, weight_only=bits)
    assert [decision.quantized for decision in result.decisions] == [True]
    file = result.save(tmp_path / "m", inspect=False).files[0]
    assert sqnr(run(model, [{"x": x}]).astype(np.float64), run(file, [{"x": x}])) > {4: 20, 8: 35}[bits]


@pytest.mark.parametrize("data", [True, False])
def test_a_weight_that_several_products_read_is_stored_once(data: bool, tmp_path: Path) -> None:
    text = "g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, W) r = Relu(a) y = MatMul(r, W) }"
    model = build(text, W=normal(1, 64, 64) / 8)
    result = amct_onnx.quantize(model, mixed(4, 64, 64) if data else None, weight_only=4)
    assert all(step.kept for step in result.steps)
    saved = onnx.load(result.save(tmp_path / "m", inspect=False).files[0])
    nodes = [node for node in saved.graph.node if node.op_type == "MatMulNBits"]
    assert len(nodes) == 2
    assert nodes[0].input[1:] == nodes[1].input[1:]


@pytest.mark.parametrize(
    ("text", "arrays", "reason"),
    [
        ("y = MatMul(W, x)", {"W": normal(1, 8, 4)}, "its constant operand is the first one"),
        ("t = Transpose<perm=[1,0]>(W) y = MatMul(t, x)", {"W": normal(1, 4, 8)}, "its constant operand is the first"),
        ("y = MatMul(x, W)", {"W": normal(1, 2, 4, 4)}, "its weight has 3 dimensions, and 2 are supported"),
        ("y = Gemm(x, W, b)", {"W": normal(1, 4, 4), "b": normal(2, 4, 4)}, "its bias differs from row to row"),
        ("d = Cast<to=11>(x) y = MatMul(d, W)", {"W": normal(1, 4, 4).astype(np.float64)}, "its weight is float64"),
    ],
)
def test_what_stays_in_float_has_a_reason_of_its_own(text: str, arrays: dict[str, np.ndarray], reason: str) -> None:
    kind = "double" if "Cast" in text else "float"
    start = "u = MatMul(x, U) z = Relu(u)"
    model = build(
        f"g (float[4,4] x) => ({kind}[M,N] y, float[4,4] z) {{ {start} {text} }}", U=normal(5, 4, 4), **arrays
    )
    decisions = amct_onnx.quantize(model, None, weight_only=8, block_size=16).decisions
    assert [decision.quantized for decision in decisions] == [True, False]
    assert reason in decisions[1].reason
    alone = build(f"g (float[4,4] x) => ({kind}[M,N] y) {{ {text} }}", **arrays)
    with pytest.raises(ModelError, match=reason):
        amct_onnx.quantize(alone, None, weight_only=8, block_size=16)
