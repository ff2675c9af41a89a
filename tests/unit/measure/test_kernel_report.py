"""What ONNX Runtime runs, as the report says it and as the runtime's own profiler sees it."""

from __future__ import annotations

import json
import platform
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, build, normal
from onnx import external_data_helper

from amct_onnx.errors import DataError, FileMissingError, ModelError, ModelFileError
from amct_onnx.graph.kernels import FloatNode, FloatReason, Kernels
from amct_onnx.measure.kernel_report import RuntimeReport, inspect_model
from amct_onnx.measure.latency import Latency
from amct_onnx.run.saturation import saturates

U8, I8, F = np.uint8, np.int8, np.float32
X = {"x": normal(0, 1, 8, 6, 6)}


def pair(source: str, result: str, scale: str = "s", zero: str = "z") -> str:
    """Text of a QuantizeLinear and a DequantizeLinear."""
    grid = f"{scale}, {zero}"
    return f"{result}q = QuantizeLinear ({source}, {grid}) {result} = DequantizeLinear ({result}q, {grid}) "


def quantized(nodes: str, *, opset: int = 17, head: str = "", dtype: Any = U8, **weights: Any) -> onnx.ModelProto:
    """x [1,8,6,6] -> Q -> DQ -> a -> `nodes` -> y, with weights and grids by name."""
    zero = dtype(128) if dtype is U8 else dtype(0)
    given = {
        "s": F(0.05), "s2": F(0.03), "z": zero, "z0": dtype(0), "z8": I8(0),
        "q": np.random.default_rng(1).integers(-60, 60, (8, 8, 1, 1)).astype(I8),
    } | weights  # fmt: skip
    body = head or "g (float[1,8,6,6] x) => (float[A,B,C,D] y)"
    text = f"{body} {{ {pair('x', 'a')} w = DequantizeLinear (q, s, z8) {nodes} }}"
    used = set(re.findall(r"\w+", text))
    return build(text, opset=opset, **{name: array for name, array in given.items() if name in used})


CONV = "[conv] c = Conv (a, w) " + pair("c", "d")
CASES: dict[str, tuple[onnx.ModelProto, dict[str, int], dict[str, FloatReason]]] = {
    "convolution and what follows it": (
        quantized(
            CONV + "[pool] p = MaxPool <kernel_shape=[2,2]> (d) " + pair("p", "e")
            + "[sum] t = Add (e, e) " + pair("t", "f") + "[sigmoid] u = Sigmoid (f) " + pair("u", "y")
        ),
        {"QLinearConv": 1, "NhwcMaxPool": 1, "QLinearAdd": 1, "QLinearSigmoid": 1},
        {},
    ),
    "Reshape-like nodes and integers of shapes": (
        quantized(
            CONV + "[shape] n = Shape (d) [move] t = Transpose <perm=[1,0,2,3]> (d) [back] r = Reshape (t, n) "
            + pair("r", "e") + "[sum] u = Add (e, e) " + pair("u", "y")
        ),
        {"QLinearConv": 1, "QLinearAdd": 1},
        {},
    ),
    "no integer kernel": (
        quantized(CONV + "[tanh] t = Tanh (d) " + pair("t", "y")), {"QLinearConv": 1}, {"tanh": FloatReason.NO_KERNEL},
    ),
    "interpolation": (
        quantized(
            """[resize] t = Resize <mode="linear"> (a, , r) """ + pair("t", "y"), r=F([1, 1, 2, 2]),
        ),
        {}, {"resize": FloatReason.NO_KERNEL},
    ),
    "nothing quantized": (
        quantized(CONV + "[tanh] t = Tanh (d) [softmax] y = Softmax (t)"),
        {"QLinearConv": 1}, {"tanh": FloatReason.NO_KERNEL, "softmax": FloatReason.NOT_QUANTIZED},
    ),
    "weight alone": (
        build(
            "g (float[2,8] x) => (float[2,8] y) { w = DequantizeLinear <axis=0> (q, s, z) [gemm] y = MatMul (x, w) }",
            q=np.arange(64, dtype=I8).reshape(8, 8), s=np.full(8, 0.1, F), z=np.zeros(8, I8), opset=21, ir_version=10,
        ),
        {}, {"gemm": FloatReason.NOT_QUANTIZED},
    ),
    "weight computed at run time": (
        quantized(
            "[conv] c = Conv (a, v) " + pair("c", "y"),
            head="g (float[1,8,6,6] x, float[8,8,1,1] v) => (float[A,B,C,D] y)",
        ),
        {}, {"conv": FloatReason.WEIGHT},
    ),
    "weight that arrives as integers": (
        quantized(
            "[conv] c = Conv (a, u) u = DequantizeLinear (v, s, z8) " + pair("c", "y"),
            head="g (float[1,8,6,6] x, int8[8,8,1,1] v) => (float[A,B,C,D] y)",
        ),
        {"QLinearConv": 1}, {},
    ),
    "weight alone, of a Gemm": (
        build(
            "g (float[2,32] x) => (float[2,8] y) { w = DequantizeLinear <axis=1> (q, s, z) [gemm] y = Gemm (x, w) }",
            q=np.arange(256).reshape(32, 8).astype(I8), s=np.full(8, 0.1, F), z=np.zeros(8, I8),
        ),
        {}, {"gemm": FloatReason.WEIGHT_ONLY},
    ),
    "factor of a bias": (
        quantized(
            "[flat] b = Flatten (a) [gemm] c = Gemm <beta=0.5> (d, v, k) v = DequantizeLinear (m, s, z8) "
            + pair("b", "d") + pair("c", "y"),
            head="g (float[1,8,6,6] x) => (float[A,B] y)", m=np.ones((288, 4), I8), k=normal(1, 4),
        ),
        {}, {"gemm": FloatReason.UNKNOWN},
    ),
    "float bias without quantization behind": (
        quantized(
            "[flat] b = Flatten (a) [gemm] y = Gemm (d, v, k) v = DequantizeLinear (m, s, z8) " + pair("b", "d"),
            head="g (float[1,8,6,6] x) => (float[A,B] y)", m=np.ones((288, 4), I8), k=normal(1, 4),
        ),
        {}, {"gemm": FloatReason.CONSTANT},
    ),
    "constant without quantization": (
        quantized("[sum] t = Add (a, k) " + pair("t", "y"), k=normal(1, 8, 1, 1)), {}, {"sum": FloatReason.CONSTANT},
    ),
    "float neighbour": (
        quantized("[tanh] t = Tanh (a) [sum] u = Add (a, t) " + pair("u", "y")),
        {}, {"tanh": FloatReason.NO_KERNEL, "sum": FloatReason.INPUT},
    ),
    "no quantization behind": (
        quantized("[conv] y = Conv (a, w)"), {}, {"conv": FloatReason.OUTPUT},
    ),
    "other readers": (
        quantized("[conv] c = Conv (a, w) [tanh] t = Tanh (c) [sum] u = Add (t, d) " + pair("c", "d") + pair("u", "y")),
        {}, {"conv": FloatReason.READERS, "tanh": FloatReason.NO_KERNEL, "sum": FloatReason.INPUT},
    ),
    "activation that is not covered": (
        quantized("[conv] c = Conv (a, w) [relu] r = Relu (c) " + pair("r", "y")),
        {}, {"conv": FloatReason.ACTIVATION},
    ),
    "activation that is covered": (
        quantized("[conv] c = Conv (a, w) [relu] r = Relu (c) " + pair("r", "y", zero="z0")), {"QLinearConv": 1}, {},
    ),
    "other scale behind": (
        quantized(CONV + "[pool] p = MaxPool <kernel_shape=[2,2]> (d) " + pair("p", "y", "s2")),
        {"QLinearConv": 1}, {"pool": FloatReason.SCALES},
    ),
    "opset of floats only": (
        quantized("[pool] p = MaxPool <kernel_shape=[2,2]> (a) " + pair("p", "y"), opset=11),
        {}, {"pool": FloatReason.OPSET},
    ),
    "int8 with several readers": (
        quantized("[left] c = Conv (a, w) " + pair("c", "d") + "[right] t = Add (a, d) " + pair("t", "y"), dtype=I8),
        {}, {"left": FloatReason.INT8, "right": FloatReason.INT8},
    ),
    "product that writes floats": (
        quantized("[product] p = MatMul (a, v) [relu] y = Relu (p) v = DequantizeLinear (m, s, z8)",
                  m=np.full((6, 5), 9, I8)),
        {"MatMulIntegerToFloat": 1}, {"relu": FloatReason.NO_KERNEL},
    ),
    "in a subgraph": (
        quantized(
            """y = If (yes) <then_branch = t () => (float[A,B,C,D] u)
                { ac = Conv (a, w) acq = QuantizeLinear (ac, s, z) u = DequantizeLinear (acq, s, z) },
              else_branch = e () => (float[A,B,C,D] v) { [inner] v = Tanh (a) }> """,
            head="g (float[1,8,6,6] x, bool yes) => (float[A,B,C,D] y)",
        ),
        {}, {},
    ),
}  # fmt: skip


def inspected(
    model: onnx.ModelProto,
    feed: dict[str, np.ndarray] | None = None,
    *,
    before: onnx.ModelProto | None = None,
    budget: float = 0.001,
) -> RuntimeReport:
    """The report on `model` beside the float model `before`, which is the same one unless it is given."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "quantized.onnx"
        onnx.save(model, file)
        return inspect_model((before or model).SerializeToString(), file, feed, threads=1, budget=budget)


@pytest.mark.parametrize("name", [name for name in CASES if name != "in a subgraph"])
def test_kernels_and_reasons(name: str) -> None:
    if name.startswith("int8") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("ONNX Runtime fuses int8 like uint8 on other CPUs")
    model, integer, floating = CASES[name]
    kernels = inspected(model).kernels
    assert dict(kernels.integer) == integer
    assert {node.name: node.reason for node in kernels.stayed_float} == floating
    assert sum(kernels.floating.values()) == len(kernels.stayed_float)


# ONNX Runtime blocks channels by 8 on CPUs with AVX2 and by 16 on those with AVX-512, and names what it blocks anew:
# here some of the models are blocked, whichever CPU it is.
@pytest.mark.parametrize("channels", [4, 8, 16, 32])
@pytest.mark.parametrize("label", ["[pool]", ""])
def test_a_node_has_the_name_of_the_file_on_every_cpu(channels: int, label: str) -> None:
    head = f"g (float[1,{channels},6,6] x) => (float[A,B,C,D] y)"
    text = f"{label} p = MaxPool <kernel_shape=[2,2]> (a) "
    (pool,) = inspected(quantized(text + pair("p", "y", "s2"), head=head)).kernels.stayed_float
    assert (pool.name, pool.op_type, pool.reason) == ("pool" if label else "p", "MaxPool", FloatReason.SCALES)


@pytest.mark.parametrize("channels", [4, 8, 16, 32])
def test_a_float_network_has_the_names_of_the_file_on_every_cpu(channels: int) -> None:
    """A convolution that is fused with what follows it has its own name, not that of what follows."""
    model = build(
        f"""g (float[1,{channels},6,6] x) => (float[A,B,C,D] y) {{
            [first] a = Conv (x, w) [norm] b = BatchNormalization (a, s, s, s, s) [relu] c = Relu (b)
            [pool] d = MaxPool <kernel_shape=[2,2]> (c) [second] e = Conv (d, w) [third] f = Conv (d, v)
            [sum] g = Add (e, f) [last] y = Softmax (g) }}""",
        w=normal(0, channels, channels, 1, 1), v=normal(1, channels, channels, 1, 1), s=np.ones(channels, F),
    )  # fmt: skip
    named = [(node.name, node.op_type.removeprefix("Fused")) for node in inspected(model).kernels.stayed_float]
    kinds = {"first": "Conv", "pool": "MaxPool", "second": "Conv", "third": "Conv", "last": "Softmax"}
    assert len(named) == len(set(named))
    assert {name: kind for name, kind in named if name != "sum"} == kinds  # the sum may be fused with a convolution


def feed_of(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """An input for a model whose inputs have fixed shapes."""
    types = {value.name: value.type.tensor_type for value in model.graph.input}
    shapes = {name: [d.dim_value for d in kind.shape.dim] for name, kind in types.items()}
    return {
        name: normal(0, *shapes[name]).astype(onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
        for name, kind in types.items()
    }


def profiled(model: bytes | str, feed: dict[str, np.ndarray], folder: Path) -> tuple[Counter[str], Counter[str]]:
    """Kernels that ran on bytes, and all kernels that ran, by operator, as the profiler of ONNX Runtime saw them."""
    options = ort.SessionOptions()
    options.enable_profiling = True
    options.profile_file_prefix = str(folder / "profile")
    session = ort.InferenceSession(model, options, providers=CPU)
    session.run(None, feed)
    events = json.loads(Path(session.end_profiling()).read_text())
    ran = {e["name"]: e["args"] for e in events if e["cat"] == "Node" and e["name"].endswith("_kernel_time")}
    on_bytes = Counter(args["op_name"] for args in ran.values() if _types(args) & {"uint8", "int8"})
    return on_bytes, Counter(args["op_name"] for args in ran.values())


def _types(args: dict[str, Any]) -> set[str]:
    return {kind for value in (*args["input_type_shape"], *args["output_type_shape"]) for kind in value}


_NEITHER = {
    "QuantizeLinear",
    "DequantizeLinear",
    "Transpose",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "MatMulNBits",
}


def check_against_profiler(kernels: Kernels, model: bytes | str, feed: dict[str, np.ndarray], folder: Path) -> None:
    on_bytes, ran = profiled(model, feed, folder)
    assert dict(kernels.integer) == {op: n for op, n in on_bytes.items() if op not in _NEITHER}
    assert all(ran[op] >= n for op, n in kernels.floating.items())
    assert not any(on_bytes[op] > ran[op] - n for op, n in kernels.floating.items() if op not in _NEITHER)
    assert dict(kernels.conversions) == {op: ran[op] for op in ("QuantizeLinear", "DequantizeLinear") if ran[op]}


@pytest.mark.parametrize("name", [name for name in CASES if name != "in a subgraph"])
def test_the_profiler_of_the_runtime_sees_the_same_kernels(name: str, tmp_path: Path) -> None:
    model = CASES[name][0]
    data = model.SerializeToString()
    check_against_profiler(inspected(model).kernels, data, feed_of(model), tmp_path)


def test_the_profiler_sees_the_same_kernels_of_a_real_model(test_data: Callable[..., Path], tmp_path: Path) -> None:
    path = str(test_data("models", "mobilenetv2_qdq_per_tensor.onnx"))
    (given,) = ort.InferenceSession(path, providers=CPU).get_inputs()
    feed = {given.name: normal(0, 1, 3, 224, 224)}
    report = inspect_model(path, path)
    check_against_profiler(report.kernels, path, feed, tmp_path)
    assert report.kernels.integer["QLinearConv"] >= 37
    assert {node.reason for node in report.kernels.stayed_float} <= {FloatReason.INT8}


def test_nodes_of_subgraphs_count() -> None:
    kernels = inspected(CASES["in a subgraph"][0]).kernels
    assert [(node.name, node.reason) for node in kernels.stayed_float if node.op_type == "Tanh"] == [
        ("inner", FloatReason.NO_KERNEL)
    ]


def test_conversions_at_the_border_of_the_model_are_told_apart() -> None:
    kernels = inspected(CASES["no integer kernel"][0]).kernels
    assert dict(kernels.conversions) == {"QuantizeLinear": 2, "DequantizeLinear": 2}
    assert kernels.inner_conversions == 2
    assert inspected(CASES["activation that is covered"][0]).kernels.inner_conversions == 0


# --- saturation


def product(weight: np.ndarray) -> onnx.ModelProto:
    nodes = "[p] t = MatMul (a, v) v = DequantizeLinear (m, s, zm) " + pair("t", "y")
    return quantized(nodes, m=weight, zm=weight.dtype.type(0))


@pytest.mark.parametrize("dtype", [I8, U8])
def test_saturation_is_what_a_product_shows(dtype: Any) -> None:
    """A weight of the largest int8 gives the exact result only where the CPU does not saturate; uint8 always does."""
    big = np.full((6, 5), 127, dtype)
    model = build(
        "g (uint8[4,6] a) => (int32[4,5] y) { y = MatMulInteger (a, b) }", b=np.full((6, 5), 127, dtype)
    ).SerializeToString()
    got = ort.InferenceSession(model, providers=CPU).run(None, {"a": np.full((4, 6), 255, U8)})[0]
    exact = bool((got == 6 * 255 * 127).all())
    kernels = inspected(product(big)).kernels
    assert kernels.saturable == (dtype is I8)
    assert exact == (not (kernels.saturable and saturates()))
    assert inspected(product(big)).saturates == (not exact)


def test_weights_of_a_reduced_range_do_not_saturate() -> None:
    assert not inspected(product(np.full((6, 5), -64, I8))).kernels.saturable
    assert inspected(product(np.full((6, 5), -65, I8))).kernels.saturable


def test_a_depthwise_convolution_does_not_saturate() -> None:
    weight = np.full((8, 1, 3, 3), 127, I8)
    kernels = inspected(
        quantized("[conv] c = Conv <group=8> (a, v) v = DequantizeLinear (m, s, z8) " + pair("c", "y"), m=weight)
    ).kernels
    assert not kernels.saturable
    assert kernels.slow == ("depthwise QLinearConv",)


# --- sizes, latency, text


def test_sizes_include_external_data(tmp_path: Path) -> None:
    model = build("g (float[2,64] x) => (float[2,64] y) { y = MatMul (x, w) }", w=normal(0, 64, 64))
    onnx.save(model, tmp_path / "inside.onnx")
    external_data_helper.convert_model_to_external_data(model, location="w.data", size_threshold=0)
    onnx.save(model, tmp_path / "outside.onnx")
    report = inspect_model(tmp_path / "inside.onnx", tmp_path / "outside.onnx", {"x": normal(1, 2, 64)}, budget=0.01)
    assert report.bytes_before == (tmp_path / "inside.onnx").stat().st_size
    assert report.bytes_after == sum((tmp_path / name).stat().st_size for name in ("outside.onnx", "w.data"))
    assert report.latency is not None
    assert report.latency.runs >= 5


def test_the_optimised_model_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    inspected(CASES["no integer kernel"][0], X)
    assert list(tmp_path.iterdir()) == []


def test_a_model_that_computes_more_is_slower() -> None:
    def chain(count: int) -> onnx.ModelProto:
        nodes = " ".join(f"t{i + 1} = MatMul (t{i}, w)" for i in range(count)).replace("t0,", "x,")
        text = f"g (float[64,64] x) => (float[64,64] t{count}) {{ {nodes} }}"
        return build(text, w=normal(0, 64, 64, scale=0.1))

    feed = {"x": normal(1, 64, 64)}
    report = inspected(chain(80), feed, before=chain(4), budget=0.05)
    assert report.latency is not None
    assert report.slower
    assert report.latency.speedup < 0.5
    assert report.slow_because[0] == "nothing is computed in integers"
    assert any("slower than the float one" in line for line in report.lines())
    faster = inspected(chain(4), feed, before=chain(80), budget=0.05)
    assert not faster.slower
    assert faster.slow_because == ()


def test_without_input_nothing_is_measured() -> None:
    report = inspected(CASES["no integer kernel"][0])
    assert report.latency is None
    assert not report.slower
    assert not any(line.startswith("Latency") for line in report.lines())


def test_the_text_does_not_grow_with_the_model() -> None:
    def long(count: int) -> list[str]:
        kinds = ("Tanh", "Elu", "Erf", "Softplus", "Exp", "Neg", "Abs", "Softsign")
        nodes = "".join(f"[n{i}] t{i} = {kinds[i % 8]} (d{i}) " + pair(f"t{i}", f"d{i + 1}") for i in range(count))
        model = quantized(nodes.replace("(d0)", "(a)") + f"y = Softmax (d{count})")
        return inspected(model, X).lines()

    short, longer = long(10), long(100)
    assert any("n0 (Tanh), n1 (Elu), n2 (Erf) and 97 more" in line for line in longer)
    assert max(map(len, (*short, *longer))) < 200
    assert f"...{'a' * 40} (Tanh)" in "".join(inspected(quantized(f"[{'a' * 500}] y = Tanh (a)")).lines())
    assert len(longer) <= 15


def test_the_longest_text_has_fifteen_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [FloatNode(name=reason.name, op_type="Conv", reason=reason) for reason in FloatReason]
    kernels = Kernels(
        integer={"MaxPool": 1}, floating={"Conv": len(nodes)}, stayed_float=tuple(nodes),
        conversions={"QuantizeLinear": 9}, inner_conversions=9, slow=("MaxPool",), saturable=True,
    )  # fmt: skip
    report = RuntimeReport(
        version="1", kernels=kernels, bytes_before=2, bytes_after=1, latency=Latency(before=1e-4, after=1, runs=5),
        saturates=True, slow_because=("a", "b", "c", "d", "e"),
    )  # fmt: skip
    assert len(report.lines()) == 15


# --- what goes wrong


def test_files_that_are_missing_or_no_models(tmp_path: Path) -> None:
    good, file = CASES["no integer kernel"][0].SerializeToString(), tmp_path / "good.onnx"
    file.write_bytes(good)
    with pytest.raises(FileMissingError, match=r"nothing\.onnx does not exist"):
        inspect_model(good, tmp_path / "nothing.onnx")
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ModelFileError, match=r"text\.onnx"):
        inspect_model(tmp_path / "text.onnx", file)
    with pytest.raises(ModelError, match="cannot open the float model"):
        inspect_model(b"no model", file, X)
    unknown = """<ir_version: 8, opset_import: ["" : 13, "nowhere" : 1]>
        g (float[1,8,6,6] x) => (float y) { y = nowhere.F (x) }"""
    onnx.save(onnx.parser.parse_model(unknown), tmp_path / "other.onnx")
    with pytest.raises(ModelError, match=r"cannot open the quantized model .*other\.onnx"):
        inspect_model(good, tmp_path / "other.onnx")


def test_an_input_that_does_not_fit() -> None:
    model = CASES["no integer kernel"][0]
    with pytest.raises(DataError, match="cannot run the models with this input"):
        inspected(model, {"x": normal(0, 2, 3)})
    assert inspected(model, X).latency is not None
