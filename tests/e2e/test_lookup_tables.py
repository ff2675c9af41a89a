"""Tables that are looked up in, as embeddings are: int8 in the file, close to float, whatever the lookup looks like."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from flow import CPU, build, normal
from onnxruntime import InferenceSession
from qdq_graph import exact_session, kernels

import amct_onnx

WORDS, WIDTH, HEAD = 400, 48, 10
TABLE = normal(1, WORDS, WIDTH)
ROWS = (TABLE * np.exp(1.2 * normal(2, WORDS, 1))).astype(np.float32)
COLUMNS = (TABLE * np.exp(1.2 * normal(2, 1, WIDTH))).astype(np.float32)
HEADS = {"v": normal(3, WIDTH, HEAD, scale=0.15)}
Feed = dict[str, np.ndarray]


def model_of(body: str, ids: str = "int64[N] ids", *, opset: int = 17, **weights: np.ndarray) -> onnx.ModelProto:
    """A lookup `e` of `ids` by the lines `body`, and a head behind it."""
    text = f"g ({ids}) => (float[N,{HEAD}] y) {{ {body} t = Tanh (e) y = MatMul (t, v) }}"
    return build(text, opset=opset, **weights, **HEADS)


def feeds(most: int = WORDS, *shape: int) -> list[Feed]:
    rng = np.random.default_rng(7)
    return [{"ids": rng.integers(0, most, shape or (16,))} for _ in range(16)]


GATHER = "[look] e = Gather (w, ids)"
MODELS: dict[str, tuple[onnx.ModelProto, list[Feed]]] = {
    "one_scale": (model_of(GATHER, w=TABLE), feeds()),
    "scales_of_rows": (model_of(GATHER, w=ROWS), feeds()),
    "scales_of_columns": (model_of(GATHER, w=COLUMNS), feeds()),
    "opset_11": (model_of(GATHER, opset=11, w=TABLE), feeds()),
    "opset_22": (model_of(GATHER, opset=22, w=TABLE), feeds()),
    "padding_of_zeros": (model_of(GATHER, w=np.concatenate([np.zeros((1, WIDTH), np.float32), TABLE])), feeds()),
    "half": (model_of("[look] h = Gather (w, ids) e = Cast <to = 1> (h)", w=TABLE.astype(np.float16)), feeds()),
    "half_rows": (model_of("[look] h = Gather (w, ids) e = Cast <to = 1> (h)", w=ROWS.astype(np.float16)), feeds()),
    "behind_a_cast": (
        model_of("c = Cast <to = 1> (w) [look] e = Gather (c, ids)", w=TABLE.astype(np.float16)),
        feeds(),
    ),
    "turned": (model_of("c = Transpose (w) [look] e = Gather (c, ids)", w=np.ascontiguousarray(TABLE.T)), feeds()),
    "other_axis": (
        model_of("[look] c = Gather <axis = 1> (w, ids) e = Transpose (c)", w=np.ascontiguousarray(ROWS.T)),
        feeds(),
    ),
    "three_dimensions": (
        model_of(
            "[look] c = Gather (w, ids) e = Reshape (c, s)",
            w=TABLE.reshape(WORDS, 4, -1),
            s=np.array([-1, WIDTH]),
        ),
        feeds(),
    ),
    "parts": (model_of("[look] e = GatherND (w, ids)", "int64[N,1] ids", w=TABLE), feeds(WORDS, 16, 1)),
    "elements": (
        model_of("[look] e = GatherElements (w, ids)", f"int64[N,{WIDTH}] ids", w=TABLE),
        feeds(WORDS, 16, WIDTH),
    ),
    "sentences": (
        model_of("[look] c = Gather (w, ids) e = ReduceMean <axes = [1], keepdims = 0> (c)", "int64[N,5] ids", w=TABLE),
        feeds(WORDS, 8, 5),
    ),
}


def sqnr(proto: onnx.ModelProto, file: str, feed: Feed) -> float:
    float_session = InferenceSession(proto.SerializeToString(), providers=CPU)
    wanted, got = (
        np.concatenate([y.ravel() for y in session.run(None, feed)]).astype(np.float64)
        for session in (float_session, exact_session(file))
    )
    return float(10 * np.log10(np.square(wanted).sum() / np.square(wanted - got).sum()))


def stored(file: str, least: int = 4096) -> list[int]:
    """The types of the large initializers."""
    return sorted(t.data_type for t in onnx.load(file).graph.initializer if np.prod(t.dims) >= least)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", MODELS)
def test_the_table_is_int8_and_close_to_float(name: str, target: str, tmp_path: Path) -> None:
    proto, data = MODELS[name]
    result = amct_onnx.quantize(proto, data, target=target, effort="fast")
    (file,) = result.save(tmp_path / "q", inspect=False).files
    onnx.checker.check_model(file, full_check=True)
    assert {d.layer: d.quantized for d in result.decisions}["look"]
    assert stored(file) == [onnx.TensorProto.INT8]
    assert sqnr(proto, file, data[0]) > 30


def test_a_lookup_in_front_of_a_layer_needs_no_node_at_all(tmp_path: Path) -> None:
    proto = build(
        f"g (int64[N] ids) => (float[N,{HEAD}] y) {{ e = Gather (w, ids) y = MatMul (e, v) }}", w=TABLE, **HEADS
    )
    (file,) = amct_onnx.quantize(proto, feeds()).save(tmp_path / "q", inspect=False).files
    assert kernels(file, tmp_path) == {"Gather": 1, "MatMulIntegerToFloat": 1}
    assert stored(file) == [onnx.TensorProto.UINT8]
    assert sqnr(proto, file, feeds()[0]) > 30


@pytest.mark.parametrize("effort", ["fast", "default"])
@pytest.mark.parametrize("head", ["y = Gemm <transB = 1> (h, w)", "c = Transpose (w) y = MatMul (h, c)"])
def test_a_tied_head_reads_the_same_integers(head: str, effort: str, tmp_path: Path) -> None:
    text = f"g (int64[N] ids) => (float[N,{WORDS}] y) {{ e = Gather (w, ids) f = MatMul (e, v) h = Tanh (f) {head} }}"
    proto = build(text, w=TABLE, v=normal(3, WIDTH, WIDTH, scale=0.15))
    (file,) = amct_onnx.quantize(proto, feeds(), effort=effort).save(tmp_path / "q", inspect=False).files
    assert stored(file) == [onnx.TensorProto.INT8]
    assert sum(count for kind, count in kernels(file, tmp_path).items() if kind.startswith(("QGemm", "MatMulI"))) == 2
    assert sqnr(proto, file, feeds()[0]) > 30


def test_lookups_in_one_table_share_it_in_bodies_as_well(tmp_path: Path) -> None:
    proto = build(
        f"""g (int64[N] ids, bool c) => (float[N,{HEAD}] y) {{ y = If (c) <
            then_branch = a () => (float[N,{HEAD}] o) {{ e = Gather (w, ids) t = Tanh (e) [one] o = MatMul (t, v) }},
            else_branch = b () => (float[N,{HEAD}] p) {{ d = Gather (w, ids) [two] p = MatMul (d, v) }}> }}""",
        w=TABLE,
        **HEADS,
    )
    data = [feed | {"c": np.array(k % 2 == 0)} for k, feed in enumerate(feeds())]
    (file,) = amct_onnx.quantize(proto, data, effort="fast").save(tmp_path / "q", inspect=False).files
    assert stored(file) == [onnx.TensorProto.INT8]
    assert min(sqnr(proto, file, feed) for feed in data[:2]) > 30


BERT = f"""g (int64[N,8] ids) => (float[N,8,{HEAD}] y) {{ [words] e = Gather (w, ids) [places] p = Gather (q, at)
    [kinds] k = Gather (s, zero) a = Add (e, p) b = Add (a, k) t = Tanh (b) y = MatMul (t, v) }}"""


def test_positions_become_int8_and_a_small_table_stays() -> None:
    weights = {
        "w": TABLE,
        "q": normal(4, 128, WIDTH),
        "s": normal(5, 2, WIDTH),
        "at": np.arange(8),
        "zero": np.zeros(8, int),
    }
    result = amct_onnx.quantize(build(BERT, **weights, **HEADS), feeds(WORDS, 4, 8), effort="fast")
    decided = {decision.layer: decision for decision in result.decisions}
    assert decided["words"].quantized
    assert decided["places"].quantized
    assert "small" in decided["kinds"].reason


@pytest.mark.parametrize(
    ("proto", "target", "reason"),
    [
        (model_of(GATHER, w=TABLE), "tensorrt", "takes no table of integers"),
        (model_of(GATHER, w=(ROWS * np.exp(2 * normal(9, 1, WIDTH))).astype(np.float32)), "onnxruntime", "int8 would"),
        (model_of(GATHER, w=np.where(np.arange(WORDS)[:, None] == 399, np.nan, TABLE)), "onnxruntime", "NaN"),
        (
            model_of(GATHER + " [boxes] z = Gather (a, ids)", w=TABLE, a=normal(8, 4000, 4, scale=100)),
            "onnxruntime",
            "no quantized layer",
        ),
    ],
    ids=["target", "too_wide", "not_finite", "no_layer_behind"],
)
def test_why_a_table_stays_in_float(proto: onnx.ModelProto, target: str, reason: str) -> None:
    if "boxes" in str(proto):
        proto.graph.output.append(onnx.helper.make_tensor_value_info("z", 1, ["N", 4]))
    result = amct_onnx.quantize(proto, feeds(399), target=target, effort="fast")
    (found,) = (decision for decision in result.decisions if reason in decision.reason)
    assert not found.quantized
    assert {decision.layer for decision in result.decisions} >= {"look"}


def test_a_lookup_can_be_switched_off_and_is_measured() -> None:
    proto, data = MODELS["one_scale"]
    result = amct_onnx.quantize(proto, data, skip_layers=["look"], effort="fast")
    assert not next(d for d in result.decisions if d.layer == "look").quantized
    assert "look" in str(amct_onnx.sensitivity(proto, data))
    assert ir.to_proto(result.model()).ByteSize() > 3.5 * TABLE.size
