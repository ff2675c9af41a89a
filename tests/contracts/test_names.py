"""Nodes and values of a model may have any names, those that quantization gives to its own ones included.

A model is quantized, and all names of the files that are written are collected. Then the nodes and values of the float
model get these names, some after the others, and it is quantized again: each file has to load, and to compute the same.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, normal

import amct_onnx

Inputs = Sequence[np.ndarray]
# What a door writes: for each file its names, and what it computes.
Written = dict[str, tuple[set[str], list[np.ndarray]]]
Door = Callable[[onnx.ModelProto, Sequence[Inputs], Path], Written]
_LEVELS = (ort.GraphOptimizationLevel.ORT_ENABLE_ALL, ort.GraphOptimizationLevel.ORT_DISABLE_ALL)
# What nobody should rely on: no name, one name for several nodes, the names of operators.
_AWKWARD = ("", "", "same", "same", "QuantizeLinear", "Conv", "MatMul_0")


def _convolutions() -> onnx.ModelProto:
    return build(
        """g (float[N,3,6,6] x) => (float[N,6,6,6] y, float[N,6,6,6] z) {
            a = Conv<pads=[1,1,1,1]>(x, A, b)
            r = Relu(a)
            c = Conv(r, B)
            n = BatchNormalization(c, s, o, m, v)
            d = Conv(r, B)
            y = Add(n, d)
            k = Clip(d, low, high)
            p = AveragePool<kernel_shape=[3,3], pads=[1,1,1,1]>(k)
            h = HardSwish(p)
            z = Identity(h) }""",
        A=normal(1, 6, 3, 3, 3) / 5, b=normal(2, 6), B=normal(3, 6, 6, 1, 1) / 2.4,
        s=np.ones(6, np.float32), o=normal(4, 6), m=normal(5, 6), v=np.ones(6, np.float32),
        low=np.float32(-1), high=np.float32(1),
    )  # fmt: skip


def _products() -> onnx.ModelProto:
    return build(
        """g (float[8,N] x, bool flag) => (float[N,4] y) {
            f = Gemm<transA=1, alpha=0.5>(x, A, b)
            g = Sigmoid(f)
            t = Mul(g, gain)
            q = MatMul(t, B)
            r = MatMul(t, C)
            s = Add(q, r)
            u = Softmax(s)
            i = If(flag)<then_branch = g1 () => (float[N,4] i1) { w = MatMul(t, B) i1 = Relu(w) },
                         else_branch = g2 () => (float[N,4] i2) { w2 = Neg(s) i2 = Relu(w2) }>
            y = Add(u, i) }""",
        opset=12,
        A=normal(1, 8, 8) / 3, b=normal(2, 8), B=normal(3, 8, 4) / 3, C=normal(4, 8, 4) / 3,
        gain=np.array([50, 1, 1, 1, 1, 1, 1, 1], np.float32),
    )  # fmt: skip


def _recurrent() -> onnx.ModelProto:
    many = " ".join(f"n{k + 1} = Neg(n{k})" for k in range(20))  # to have many names at once
    return build(
        f"""g (float[T,N,4] x) => (float[T,1,N,3] y, float[1,N,2] z) {{
            y, h = LSTM<hidden_size=3>(x, W, R, B)
            n0 = MatMul(h, P) {many} z = Identity(n20) }}""",
        W=normal(1, 1, 12, 4) / 2, R=normal(2, 1, 12, 3) / 2, B=normal(3, 1, 24), P=normal(4, 3, 2),
    )  # fmt: skip


def _encoder() -> onnx.ModelProto:
    return build(
        """g (int64[N,5] i) => (float[N,5,64] y, float[1,5,256] h) {
            x = Gather(E, i)
            a = MatMul(x, A)
            m = ReduceMean<axes=[1], keepdims=0>(x)
            b = Gemm(m, A, c)
            s = Unsqueeze(b, one)
            y = Add(a, s)
            l, h = LSTM<hidden_size=256>(x, W, R) }""",
        opset=13,
        E=normal(1, 1024, 64), A=normal(2, 64, 64) / 8, c=normal(3, 64), one=np.array([1]),
        W=normal(4, 1, 1024, 64) / 8, R=normal(5, 1, 1024, 256) / 16,
    )  # fmt: skip


_IDS = [[np.arange(10).reshape(2, 5) * 97]]
_CONVOLUTIONS = [[normal(seed, 2, 3, 6, 6)] for seed in range(3)]
_PRODUCTS = [[normal(seed, 8, 5), np.array(True)] for seed in range(3)]
_RECURRENT = [[normal(seed, 5, 2, 4)] for seed in range(3)]


def _run(session: ort.InferenceSession, inputs: Inputs) -> list[np.ndarray]:
    outputs: list[np.ndarray] = session.run(
        None, dict(zip((v.name for v in session.get_inputs()), inputs, strict=True))
    )
    return outputs


def _computed(file: str, inputs: Inputs) -> tuple[set[str], list[np.ndarray]]:
    """The names in a file, and what it computes without optimizations; with them it has to load."""
    if file.endswith("deploy_model.onnx"):
        return _names(onnx.load(file)), _run(amct_onnx.deployed_session(file), inputs)
    for level in _LEVELS:
        options = ort.SessionOptions()
        options.graph_optimization_level, options.log_severity_level = level, 4
        session = ort.InferenceSession(file, options, providers=CPU)
    return _names(onnx.load(file)), _run(session, inputs)


def _names(model: onnx.ModelProto) -> set[str]:
    """The names of nodes and values, subgraphs included."""
    loaded = ir.from_proto(model)
    nodes = [node for graph in loaded.graphs() for node in graph]
    found = {node.name for node in nodes} | {value.name for node in nodes for value in node.outputs}
    found |= {value.name for graph in loaded.graphs() for value in (*graph.inputs, *graph.initializers.values())}
    return {name for name in found if name}


def _feeds(model: onnx.ModelProto, batches: Sequence[Inputs]) -> list[dict[str, np.ndarray]]:
    return [dict(zip((v.name for v in model.graph.input), arrays, strict=True)) for arrays in batches]


def _call(
    model: onnx.ModelProto, batches: Sequence[Inputs], folder: Path, *, target: str, effort: str = "fast", **more: int
) -> Written:
    """The files of `quantize`."""
    result = amct_onnx.quantize(model, _feeds(model, batches), target=target, effort=effort, **more)  # type: ignore[arg-type]
    files = [file for file in result.save(folder / "q", inspect=False).files if file.endswith(".onnx")]
    return {Path(file).name: _computed(file, batches[0]) for file in files}


def _dynamic(model: onnx.ModelProto, batches: Sequence[Inputs], folder: Path) -> Written:
    """The file of `quantize` without data."""
    (file,) = amct_onnx.quantize(model, None, dynamic=True).save(folder / "q", inspect=False).files
    return {Path(file).name: _computed(file, batches[0])}


def _functions(
    model: onnx.ModelProto, batches: Sequence[Inputs], folder: Path, *, learned: bool = False, balanced: bool = False
) -> Written:
    """The files of AMCT's functions; each layer is an original of one node of the deploy model."""
    feeds, flow = _feeds(model, batches), Flow.of(model, folder)
    if learned:
        (folder / "simple.cfg").write_text("batch_num: 3 common_config { ada_quantize { num_iteration: 10 } }")
    flow.configure(**({"config_defination": str(folder / "simple.cfg")} if learned else {"batch_num": len(feeds)}))
    if balanced:
        config = json.loads(Path(flow.config).read_text())
        for entry in config.values():
            if isinstance(entry, dict) and "weight_quant_params" in entry:
                entry["dmq_balancer_param"] = 0.5
        Path(flow.config).write_text(json.dumps(config))
        flow.balance(feeds)
    flow.quantize().calibrate(feeds).save()
    ops = json.loads((folder / "model_quant.json").read_text())["graph"][0]["op"]
    made = [op["output_desc"][0]["attr"][3]["value"]["s"] for op in ops if "output_desc" in op]
    assert len(set(made)) == len(made)
    found = {
        file: _computed(str(folder / file), batches[0])
        for file in ("model_deploy_model.onnx", "model_fake_quant_model.onnx")
    }
    found["modified.onnx"] = _names(onnx.load(flow.modified)), []
    return found


def _converted(model: onnx.ModelProto, batches: Sequence[Inputs], folder: Path) -> Written:
    """The files of convert_qat_model, from a Q/DQ model that has its names from us."""
    result = amct_onnx.quantize(model, _feeds(model, batches), target="tensorrt", effort="fast")
    (file,) = result.save(folder / "q", inspect=False).files
    amct_onnx.convert_qat_model(file, str(folder / "c"))
    found = {
        name: _computed(str(folder / name), batches[0]) for name in ("c_deploy_model.onnx", "c_fake_quant_model.onnx")
    }
    found["q"] = _computed(file, batches[0])
    return found


def _measured(model: onnx.ModelProto, batches: Sequence[Inputs], folder: Path) -> Written:
    """What each layer costs, beside the file of the model."""
    found = amct_onnx.sensitivity(model, _feeds(model, batches))
    effects = [np.sort([getattr(layer, what) for layer in found.layers]) for what in ("effect", "from_weight")]
    return {**_call(model, batches, folder, target="onnxruntime"), "sensitivity": (set(), effects)}


_DOORS: dict[str, tuple[Door, Callable[[], onnx.ModelProto], Sequence[Inputs]]] = {
    **{
        f"{name} for {target}": (partial(_call, target=target), model, batches)
        for name, model, batches in (
            ("convolutions", _convolutions, _CONVOLUTIONS),
            ("products", _products, _PRODUCTS),
        )
        for target in ("onnxruntime", "openvino", "tensorrt", "ascend")
    },
    "all steps of the recipe": (partial(_call, target="onnxruntime", effort="best"), _products, _PRODUCTS),
    "sensitivity": (_measured, _products, _PRODUCTS),
    "sensitivity of convolutions": (_measured, _convolutions, _CONVOLUTIONS),
    "weights only": (partial(_call, target="onnxruntime", weight_only=4, block_size=16), _products, _PRODUCTS),
    "dynamic": (_dynamic, _encoder, _IDS),
    "AMCT's functions": (_functions, _convolutions, _CONVOLUTIONS),
    "AMCT's functions, balanced": (partial(_functions, balanced=True), _products, _PRODUCTS),
    "AMCT's functions, learned": (partial(_functions, learned=True), _convolutions, _CONVOLUTIONS),
    "AMCT's functions, recurrent": (_functions, _recurrent, _RECURRENT),
    "a converted model": (_converted, _convolutions, _CONVOLUTIONS),
    "a converted model of products": (_converted, _products, _PRODUCTS),
}


def _renamed(model: onnx.ModelProto, names: Sequence[str], first: int) -> onnx.ModelProto:
    """The model with the names from number `first` on: for nodes any, for values none twice."""
    copy = ir.from_proto(onnx.ModelProto.FromString(model.SerializeToString()))  # tensors are renamed in the proto
    nodes = [node for graph in copy.graphs() for node in graph]
    given = [*_AWKWARD, *names]
    for number, node in enumerate(nodes):
        node.name = given[(first + number) % len(given)]
    values = [*copy.graph.initializers.values(), *(value for node in nodes for value in node.outputs if value.name)]
    taken = {value.name for value in (*values, *copy.graph.inputs)}
    for number, value in enumerate(values):
        name = names[(first + number) % len(names)]
        if name not in taken:
            taken.add(name)
            value.name = name
    return ir.to_proto(copy)


def _rounds(model: onnx.ModelProto, names: Sequence[str]) -> Iterator[onnx.ModelProto]:
    """Each name is that of some node in one of the models."""
    for first in range(0, len(names) + len(_AWKWARD), sum(1 for _ in ir.from_proto(model).graph.all_nodes())):
        yield _renamed(model, names, first)


@pytest.mark.slow
@pytest.mark.parametrize("door", _DOORS)
def test_any_names_will_do(door: str, tmp_path: Path) -> None:
    write, make, batches = _DOORS[door]
    model = make()
    before = write(model, batches, tmp_path / "before")
    names: Mapping[str, None] = dict.fromkeys(name for found, _ in before.values() for name in sorted(found))
    for number, other in enumerate(_rounds(model, list(names))):
        onnx.checker.check_model(other)
        after = write(other, batches, tmp_path / str(number))
        assert after.keys() == before.keys()
        for file, (_, outputs) in after.items():
            for got, wanted in zip(outputs, before[file][1], strict=True):
                np.testing.assert_array_equal(got, wanted, err_msg=f"{file} in round {number}")
