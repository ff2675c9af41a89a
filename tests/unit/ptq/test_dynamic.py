"""`quantize(..., None, dynamic=True)`: what is quantized and why not, what it computes, and what is refused."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal, sqnr

import amct_onnx
from amct_onnx.cli.main import main
from amct_onnx.errors import ArgumentError, ConfigError, ModelError
from amct_onnx.numerics.weights.pairs import overflows
from amct_onnx.ptq.options import TARGET_NAMES

Feed = dict[str, np.ndarray]
W, V, B = normal(1, 64, 64, scale=0.125), normal(2, 64, 64, scale=0.125), normal(3, 64)


def feeds_of(model: onnx.ModelProto) -> Feed:
    """Random inputs: 4 for a size that is called B, 9 for others."""
    found = {}
    for number, value in enumerate(model.graph.input):
        kind = value.type.tensor_type
        shape = [d.dim_value or (4 if d.dim_param == "B" else 9) for d in kind.shape.dim]
        if kind.elem_type == onnx.TensorProto.INT64:
            found[value.name] = np.random.default_rng(number).integers(0, 64, shape)
        elif kind.elem_type == onnx.TensorProto.INT32:
            found[value.name] = np.array([9, 4, 1, 7], np.int32)
        else:
            found[value.name] = normal(10 + number, *shape)
    return found


def saved(model: Any, folder: Path, **options: Any) -> str:
    file: str = amct_onnx.quantize(model, None, dynamic=True, **options).save(folder / "m", inspect=False).files[0]
    onnx.checker.check_model(onnx.load(file), full_check=False)
    return file


def run(source: str | bytes, feed: Feed, optimised: Path | None = None) -> list[np.ndarray]:
    """The outputs, of kernels that do not saturate on a CPU without VNNI."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.add_session_config_entry("session.x64quantprecision", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    outputs: list[np.ndarray] = ort.InferenceSession(source, options, providers=CPU).run(None, feed)
    return outputs


def kernels(file: str, feed: Feed, folder: Path) -> Counter[str]:
    """The nodes of the graph that ONNX Runtime makes of a file."""
    run(file, feed, folder / "optimised.onnx")
    return Counter(node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node)


PRODUCTS: dict[str, tuple[str, dict[str, np.ndarray]]] = {
    "alone": ("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, W) }", {"W": W}),
    "of rank 1": ("g (float[64] x) => (float[64] y) { y = MatMul(x, W) }", {"W": W}),
    "of rank 4": ("g (float[2,N,3,64] x) => (float[2,N,3,64] y) { y = MatMul(x, W) }", {"W": W}),
    "with a bias": ("g (float[N,3,64] x) => (float[N,3,64] y) { a = MatMul(x, W) y = Add(a, b) }", {"W": W, "b": B}),
    "behind a bias": ("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, W) y = Add(b, a) }", {"W": W, "b": B}),
    "turned": ("g (float[N,64] x) => (float[N,64] y) { t = Transpose(W) y = MatMul(x, t) }", {"W": W}),
    "Gemm": ("g (float[N,64] x) => (float[N,64] y) { y = Gemm(x, W) }", {"W": W}),
    "Gemm, turned": (
        "g (float[N,64] x) => (float[N,64] y) { y = Gemm<transB=1, alpha=0.5, beta=2.0>(x, W, b) }",
        {"W": W, "b": B},
    ),
    "Gemm of columns": ("g (float[64,N] x) => (float[N,64] y) { y = Gemm<transA=1>(x, W, b) }", {"W": W, "b": B}),
}


@pytest.mark.parametrize("opset", [11, 13, 22])
@pytest.mark.parametrize("kind", PRODUCTS)
def test_a_product_becomes_one_kernel(kind: str, opset: int, tmp_path: Path) -> None:
    text, weights = PRODUCTS[kind]
    model = build(text, opset=opset, **weights)
    feed, file = feeds_of(model), saved(model, tmp_path)
    assert sqnr(run(model.SerializeToString(), feed)[0], run(file, feed)[0]) > 35
    found = kernels(file, feed, tmp_path)
    assert found - Counter({"Transpose": 1}) == Counter({"DynamicQuantizeMatMul": 1})
    assert not [i for i in onnx.load(file).graph.initializer if i.data_type == 1 and np.prod(i.dims) > 64]


def test_it_computes_what_the_integers_say(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,64] y) { a = MatMul(x, W) y = Add(a, b) }", W=W, b=B)
    feed = feeds_of(model)
    result = amct_onnx.quantize(model, None, dynamic=True)
    grid = result.weights["MatMul_0"]
    x = feed["x"]
    step = (max(x.max(), 0) - min(x.min(), 0)) / np.float32(255)
    zero = np.rint(-min(x.min(), 0) / step)
    integers = np.clip(np.rint(x / step) + zero, 0, 255) - zero
    weight = np.clip(np.rint(W / grid.scale), -128, 127)
    expected = (integers @ weight) * (step * grid.scale) + B
    file = result.save(tmp_path / "m", inspect=False).files[0]
    options = ort.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", "1")
    got = ort.InferenceSession(file, options, providers=CPU).run(None, feed)[0]
    np.testing.assert_allclose(got, expected, atol=1e-4)


ATTENTION = build(
    """g (float[B,5,64] x) => (float[B,5,64] y) {
        [q] q = MatMul(x, W) [k] k0 = MatMul(x, V) k = Transpose<perm=[0,2,1]>(k0) [v] v = MatMul(x, U)
        [scores] s = MatMul(q, k) p = Softmax(s) [mix] c = MatMul(p, v) [out] o = MatMul(c, T) y = Add(o, b) }""",
    W=W, V=V, U=normal(4, 64, 64, scale=0.125), T=normal(5, 64, 64, scale=0.125), b=B,
)  # fmt: skip


def test_attention_is_quantized_once_for_all_that_read_it(tmp_path: Path) -> None:
    result = amct_onnx.quantize(ATTENTION, None, dynamic=True)
    assert {d.layer: d.quantized or d.reason for d in result.decisions} == {
        **dict.fromkeys("qkv", True),
        **dict.fromkeys(("scores", "mix"), "it multiplies two activations"),
        "out": True,
    }
    feed, file = feeds_of(ATTENTION), saved(ATTENTION, tmp_path)
    found = kernels(file, feed, tmp_path)
    assert (found["DynamicQuantizeLinear"], found["MatMulIntegerToFloat"], found["DynamicQuantizeMatMul"]) == (1, 3, 1)
    assert sqnr(run(ATTENTION.SerializeToString(), feed)[0], run(file, feed)[0]) > 25


def test_the_report_and_another_target(tmp_path: Path) -> None:
    result = amct_onnx.quantize(ATTENTION, None, dynamic=True)
    report = result.save(tmp_path / "m").report
    assert report is not None
    assert sum(report.kernels.integer.values()) == 4
    assert report.bytes_after < 0.4 * report.bytes_before
    with pytest.raises(ArgumentError, match="no other target"):
        result.to("openvino")
    with pytest.raises(ArgumentError, match="this model has none"):
        amct_onnx.sensitivity(result, feeds_of(ATTENTION))


LSTM: dict[str, str] = {
    "alone": "y, h, c = LSTM<hidden_size=256>(x, W, R)",
    "with a bias": "y, h, c = LSTM<hidden_size=256>(x, W, R, B)",
    "backwards": 'y, h, c = LSTM<hidden_size=256, direction="reverse">(x, W, R, B)',
    "both ways, lengths": 'y, h, c = LSTM<hidden_size=256, direction="bidirectional">(x, W, R, B, l)',
    "with states": "y, h, c = LSTM<hidden_size=256>(x, W, R, B, , h0, c0)",
    "clipped": "y, h, c = LSTM<hidden_size=256, clip=3.0>(x, W, R, B)",
}


@pytest.mark.parametrize("kind", LSTM)
@pytest.mark.parametrize("reduce_range", [False, True])
def test_recurrent_layers(kind: str, reduce_range: bool, tmp_path: Path) -> None:
    ways = 2 if "both" in kind else 1
    arrays = {
        "W": normal(1, ways, 1024, 64, scale=0.1),
        "R": normal(2, ways, 1024, 256, scale=0.06),
        "B": normal(3, ways, 2048, scale=0.1),
    }
    more = ", int32[B] l" if "lengths" in kind else ", float[1,B,256] h0, float[1,B,256] c0" * ("states" in kind)
    shape = f"float[{ways},B,256]"
    model = build(
        f"g (float[N,B,64] x{more}) => (float[N,{ways},B,256] y, {shape} h, {shape} c) {{ {LSTM[kind]} }}",
        **{name: array for name, array in arrays.items() if name != "B" or ", B" in LSTM[kind]},
    )
    feed, file = feeds_of(model), saved(model, tmp_path, reduce_range=reduce_range)
    assert kernels(file, feed, tmp_path) == Counter({"DynamicQuantizeLSTM": 1})
    for exact, got in zip(run(model.SerializeToString(), feed), run(file, feed), strict=True):
        assert sqnr(exact, got) > 30
    assert Path(file).stat().st_size < 0.27 * len(model.SerializeToString())


def test_a_table_of_embeddings_keeps_a_scale_for_each_row(tmp_path: Path) -> None:
    table = normal(1, 1024, 64) * np.exp(normal(2, 1024, 1))
    model = build(
        """g (int64[N,7] i, int64[N] j) => (float[N,7,64] y, float[N,64] z) {
            e = Gather(E, i) y = MatMul(e, W) z = Gather(E, j) }""",
        E=table, W=W,
    )  # fmt: skip
    feed, file = feeds_of(model), saved(model, tmp_path)
    exact, got = run(model.SerializeToString(), feed), run(file, feed)
    assert sqnr(exact[0], got[0]) > 30
    assert sqnr(exact[1], got[1]) > 38
    rows = np.linalg.norm(exact[1] - got[1], axis=1) / np.linalg.norm(exact[1], axis=1)
    assert rows.max() < 0.02
    assert Path(file).stat().st_size < 0.3 * len(model.SerializeToString())


@pytest.mark.parametrize("last", ["MatMul(r, W)", "Gemm(r, W)"])
def test_a_weight_that_several_read_is_stored_once(last: str, tmp_path: Path) -> None:
    first = last.replace("r,", "x,")
    model = build(f"g (float[N,64] x) => (float[N,64] y) {{ a = {first} r = Relu(a) y = {last} }}", W=W)
    stored = [i for i in onnx.load(saved(model, tmp_path)).graph.initializer if i.data_type == onnx.TensorProto.INT8]
    assert len(stored) == 1


def test_reduce_range_keeps_pairs_of_products_in_16_bits(tmp_path: Path) -> None:
    model = build("g (float[N,64] x) => (float[N,64] y) { y = MatMul(x, W) }", W=np.full((64, 64), 1, np.float32))
    for reduce_range in (False, True):
        file = saved(model, tmp_path, reduce_range=reduce_range)
        (integers,) = (i for i in onnx.load(file).graph.initializer if i.data_type == onnx.TensorProto.INT8)
        assert overflows(onnx.numpy_helper.to_array(integers).T) != reduce_range


@pytest.mark.parametrize(
    ("text", "arrays", "reason"),
    [
        ("y = MatMul(z, Z)", {"Z": normal(1, 64, 10)}, "its weight of 64 x 10 is too small to be faster in integers"),
        ("y = MatMul(Z, z)", {"Z": normal(1, 9, 9)}, "its constant operand is the first one"),
        ("y = MatMul(z, Z)", {"Z": normal(1, 2, 64, 64)}, "its weight has 3 dimensions, and 2 are supported"),
        ("y = MatMul(z, Z)", {"Z": W * np.float32(np.nan)}, "the weight holds NaN or Inf"),
        ("h = Cast<to=10>(z) y = MatMul(h, Z)", {"Z": W.astype(np.float16)}, "it computes in float16"),
        (
            "u = Unsqueeze(z, Z2) y = Conv<kernel_shape=[1]>(u, Z)",
            {"Z": normal(1, 64, 64, 1), "Z2": np.array([2])},
            "a convolution of dynamic integers is slower than a float one",
        ),
        (
            "u = Unsqueeze(z, Z2) y = LSTM<hidden_size=64>(u, Z, R)",
            {"Z": normal(1, 1, 256, 64), "R": normal(2, 1, 256, 64), "Z2": np.array([0])},
            "its 32,768 weights are too few to be faster in integers",
        ),
        (
            "u = Unsqueeze(z, Z2) y = GRU<hidden_size=256>(u, Z, R)",
            {"Z": normal(1, 1, 768, 64), "R": normal(2, 1, 768, 256), "Z2": np.array([0])},
            "ONNX Runtime has no GRU of integers",
        ),
    ],
)
def test_what_stays_in_float_has_a_reason_of_its_own(
    text: str, arrays: dict[str, np.ndarray], reason: str, tmp_path: Path
) -> None:
    kind = "float16[...]" if "Cast" in text else "float[...]"
    model = build(
        f"g (float[9,64] z) => (float[9,64] v, {kind.replace('[...]', '')} y) {{ v = MatMul(z, W) {text} }}",
        W=W,
        **arrays,
    )
    result = amct_onnx.quantize(model, None, dynamic=True)
    assert [d.quantized for d in result.decisions] == [True, False]
    assert reason in result.decisions[1].reason
    run(result.save(tmp_path / "m", inspect=False).files[0], feeds_of(model))


def test_a_model_with_nothing_to_quantize_says_why() -> None:
    model = build("g (float[N,8] x) => (float[N,8] y) { y = MatMul(x, W) }", W=normal(1, 8, 8))
    with pytest.raises(ModelError, match="its weight of 8 x 8 is too small to be faster in integers"):
        amct_onnx.quantize(model, None, dynamic=True)
    assert amct_onnx.quantize(model, None, dynamic=True, full_int8=True).decisions[0].quantized


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"weight_only": 8}, "weight_only leaves activations in float, and dynamic quantizes them"),
        ({"min_sqnr": 20}, "dynamic does not search"),
        ({"algorithm": "mse"}, "dynamic has no ranges of activations to find"),
        *(({"target": name}, f"dynamic needs target onnxruntime, got {name}") for name in TARGET_NAMES[1:]),
    ],
)
def test_what_does_not_go_with_it_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ArgumentError, match=said):
        amct_onnx.quantize(ATTENTION, None, dynamic=True, **options)


def test_data_and_settings_that_it_does_not_have_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match="calibrates nothing: give None as data"):
        amct_onnx.quantize(ATTENTION, [feeds_of(ATTENTION)], dynamic=True)
    (tmp_path / "a.cfg").write_text("common_config { ada_quantize { num_iteration: 10 } }")
    with pytest.raises(ConfigError, match="AdaRound for weights"):
        amct_onnx.quantize(ATTENTION, None, dynamic=True, settings=tmp_path / "a.cfg")


def test_skip_layers() -> None:
    result = amct_onnx.quantize(ATTENTION, None, dynamic=True, skip_layers=["q"])
    assert {d.layer: d.reason for d in result.decisions}["q"] == "it is switched off by the settings"
    assert set(result.weights) == {"k", "v", "out"}


def test_the_command_gives_the_same_file(tmp_path: Path) -> None:
    path = tmp_path / "float.onnx"
    onnx.save(ATTENTION, path)
    assert main(["quantize", str(path), "--dynamic", "--save_path", str(tmp_path / "command"), "--no_report"]) == 0
    called = Path(saved(path, tmp_path)).read_bytes()
    assert (tmp_path / "command_onnxruntime.onnx").read_bytes() == called
