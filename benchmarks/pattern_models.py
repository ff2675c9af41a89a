"""Small networks of two or three operators in a row: what the table of patterns is made of.

Images have [1, 64, 28, 28] elements, rows [128, 256], and sequences [1, 128, 256]; a step keeps these numbers of
channels, so that any step can follow any other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import product

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

CHANNELS, SIZE, LENGTH, WIDTH = 64, 28, 128, 256
OPSET = 17


@dataclass(kw_only=True)
class Network:
    """A model in the making."""

    seed: int = 0
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.chance = np.random.default_rng(self.seed)

    def op(self, kind: str, *inputs: str | np.ndarray, **attributes: object) -> str:
        """Add a node, whose inputs are tensors or constants; its first result."""
        names = [self.constant(value) if isinstance(value, np.ndarray) else value for value in inputs]
        output = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, names, [output], name=output, **attributes))
        return output

    def constant(self, array: np.ndarray) -> str:
        """Add an initializer; its name."""
        name = f"c{len(self.arrays)}"
        self.arrays[name] = array
        return name

    def weight(self, *shape: int, inputs: int) -> np.ndarray:
        """A random weight that keeps the power of what it multiplies."""
        return (self.chance.normal(size=shape) / inputs**0.5).astype(np.float32)

    def bias(self, size: int) -> np.ndarray:
        """A random bias."""
        return self.chance.normal(size=size).astype(np.float32)

    def model(self, shape: tuple[int, ...], output: str) -> onnx.ModelProto:
        """The model with the input `x` of a fixed shape."""
        graph = helper.make_graph(
            self.nodes,
            "pattern",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [onnx.ValueInfoProto(name=output, type=onnx.TypeProto(tensor_type=onnx.TypeProto.Tensor(elem_type=1)))],
            [numpy_helper.from_array(array, name) for name, array in self.arrays.items()],
        )
        return helper.make_model(graph, ir_version=8, opset_imports=[helper.make_opsetid("", OPSET)])


Step = Callable[[Network, str], str]


def _number(value: float) -> np.ndarray:
    return np.array(value, np.float32)


def _integers(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def _convolution(kernel: int, groups: int = 1) -> Step:
    def step(net: Network, x: str) -> str:
        weight = net.weight(CHANNELS, CHANNELS // groups, kernel, kernel, inputs=CHANNELS // groups * kernel**2)
        pads = [kernel // 2] * 4
        return net.op("Conv", x, weight, net.bias(CHANNELS), pads=pads, group=groups)

    return step


def _swish(net: Network, x: str) -> str:
    return net.op("Mul", x, net.op("Sigmoid", x))


def _gelu(net: Network, x: str) -> str:
    inner = net.op("Add", net.op("Erf", net.op("Div", x, _number(2**0.5))), _number(1))
    return net.op("Mul", net.op("Mul", x, inner), _number(0.5))


def _tanh_gelu(net: Network, x: str) -> str:
    cube = net.op("Mul", net.op("Mul", x, x), x)
    inner = net.op("Mul", net.op("Add", x, net.op("Mul", cube, _number(0.044715))), _number(0.7978845608))
    half = net.op("Mul", net.op("Add", net.op("Tanh", inner), _number(1)), _number(0.5))
    return net.op("Mul", x, half)


def _hard_swish(net: Network, x: str) -> str:
    return net.op("Mul", x, net.op("HardSigmoid", x, alpha=1 / 6, beta=0.5))


def _squeeze(net: Network, x: str) -> str:
    mean = net.op("GlobalAveragePool", x)
    few = net.op("Conv", mean, net.weight(16, CHANNELS, 1, 1, inputs=CHANNELS), net.bias(16))
    many = net.op("Conv", net.op("Relu", few), net.weight(CHANNELS, 16, 1, 1, inputs=16), net.bias(CHANNELS))
    return net.op("Mul", x, net.op("Sigmoid", many))


def _halves(net: Network, x: str) -> str:
    ends = (0, CHANNELS // 2), (CHANNELS // 2, CHANNELS)
    parts = [net.op("Slice", x, _integers(first), _integers(last), _integers(1)) for first, last in ends]
    return net.op("Concat", parts[1], parts[0], axis=1)


def _crop(net: Network, x: str) -> str:
    wide = net.op("Pad", x, _integers(0, 0, 1, 1, 0, 0, 1, 1))
    return net.op("Slice", wide, _integers(1, 1), _integers(-1, -1), _integers(2, 3))


def _resize(mode: str) -> Step:
    def step(net: Network, x: str) -> str:
        small = net.op("MaxPool", x, kernel_shape=[2, 2], strides=[2, 2])
        scales = np.array([1, 1, 2, 2], np.float32)
        return net.op("Resize", small, "", scales, mode=mode, coordinate_transformation_mode="half_pixel")

    return step


def _shuffle(net: Network, x: str) -> str:
    apart = net.op("Reshape", x, _integers(1, 2, CHANNELS // 2, SIZE, SIZE))
    return net.op("Reshape", net.op("Transpose", apart, perm=[0, 2, 1, 3, 4]), _integers(1, CHANNELS, SIZE, SIZE))


def _unary(kind: str, *constants: np.ndarray, **attributes: object) -> Step:
    return lambda net, x: net.op(kind, x, *constants, **attributes)


def _product(bias: bool) -> Step:
    def step(net: Network, x: str) -> str:
        result = net.op("MatMul", x, net.weight(WIDTH, WIDTH, inputs=WIDTH))
        return net.op("Add", result, net.bias(WIDTH)) if bias else result

    return step


def _gemm(net: Network, x: str) -> str:
    return net.op("Gemm", x, net.weight(WIDTH, WIDTH, inputs=WIDTH), net.bias(WIDTH))


def _normalization(net: Network, x: str) -> str:
    return net.op("LayerNormalization", x, np.ones(WIDTH, np.float32), net.bias(WIDTH), axis=-1)


_ANYWHERE: dict[str, Step] = {
    "relu": _unary("Relu"),
    "clip": _unary("Clip", _number(0), _number(6)),
    "leaky": _unary("LeakyRelu", alpha=0.1),
    "sigmoid": _unary("Sigmoid"),
    "tanh": _unary("Tanh"),
    "swish": _swish,
    "hardswish": _hard_swish,
    "gelu": _gelu,
    "tanhgelu": _tanh_gelu,
    "scale": _unary("Mul", _number(0.7)),
    "square": lambda net, x: net.op("Mul", x, x),
    "softmax": _unary("Softmax", axis=-1),
}
IMAGE_STEPS: dict[str, Step] = {
    "conv": _convolution(3),
    "point": _convolution(1),
    "depthwise": _convolution(3, CHANNELS),
    "grouped": _convolution(3, 8),
    **_ANYWHERE,
    "shift": lambda net, x: net.op("Add", x, net.bias(CHANNELS).reshape(1, -1, 1, 1)),
    "maxpool": _unary("MaxPool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "avgpool": _unary("AveragePool", kernel_shape=[3, 3], pads=[1, 1, 1, 1]),
    "squeeze": _squeeze,
    "halves": _halves,
    "crop": _crop,
    "nearest": _resize("nearest"),
    "linear": _resize("linear"),
    "turn": _unary("Transpose", perm=[0, 1, 3, 2]),
    "shuffle": _shuffle,
}
ROW_STEPS: dict[str, Step] = {
    "matmul": _product(False),
    "matmuladd": _product(True),
    **_ANYWHERE,
    "norm": _normalization,
    "shift": lambda net, x: net.op("Add", x, net.bias(WIDTH)),
}
# A step whose name begins with "+" adds what goes into it to what comes out.
LEADS = {"conv", "point", "depthwise", "grouped", "matmul", "matmuladd", "gemm", "squeeze"}


@dataclass(frozen=True, kw_only=True)
class Kind:
    """Networks of one shape of tensors."""

    steps: Mapping[str, Step]
    shape: tuple[int, ...]


def _residual(step: Step) -> Step:
    return lambda net, x: net.op("Add", step(net, x), x)


def _with_residuals(steps: Mapping[str, Step]) -> dict[str, Step]:
    return {**steps, **{f"+{name}": _residual(step) for name, step in steps.items() if name in LEADS - {"squeeze"}}}


KINDS = {
    "image": Kind(steps=_with_residuals(IMAGE_STEPS), shape=(1, CHANNELS, SIZE, SIZE)),
    "rows": Kind(steps=_with_residuals({**ROW_STEPS, "gemm": _gemm}), shape=(LENGTH, WIDTH)),
    "sequence": Kind(steps=_with_residuals(ROW_STEPS), shape=(1, LENGTH, WIDTH)),
}


def names(kind: str, length: int) -> Iterator[tuple[str, ...]]:
    """All patterns of a kind and length that have something to quantize."""
    for steps in product(KINDS[kind].steps, repeat=length):
        if LEADS & {name.lstrip("+") for name in steps}:
            yield steps


def build(kind: str, steps: tuple[str, ...]) -> onnx.ModelProto:
    """The model of a pattern."""
    net, tensor = Network(), "x"
    for name in steps:
        tensor = KINDS[kind].steps[name](net, tensor)
    return net.model(KINDS[kind].shape, tensor)


def data(kind: str, count: int = 2) -> list[dict[str, np.ndarray]]:
    """Calibration data of a kind."""
    chance = np.random.default_rng(1)
    return [{"x": chance.normal(size=KINDS[kind].shape).astype(np.float32)} for _ in range(count)]
