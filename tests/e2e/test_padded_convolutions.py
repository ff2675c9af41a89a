"""Convolutions of any padding: the deploy model computes what the fake-quant model does."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from flow import CPU, Flow, build, normal, sqnr

import amct_onnx
from amct_onnx.errors import AmctError

_KINDS = ("NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")


def _run(source: str | bytes, feed: dict[str, np.ndarray]) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 4
    output: np.ndarray = ort.InferenceSession(source, options, providers=CPU).run(None, feed)[0]
    return output


def _length(rng: np.random.Generator, size: int, kernel: int, stride: int, dilation: int) -> int:
    """A length about that which the windows cover, and not below that of the input."""
    return max(size, (size - 1) * stride + (kernel - 1) * dilation + 1 + int(rng.integers(-3, 4)))


def _random(seed: int, op_type: str, rank: int) -> Iterator[tuple[onnx.ModelProto, dict[str, np.ndarray]]]:
    """Models that ONNX Runtime takes, with an input each."""
    rng = np.random.default_rng(seed)

    def numbers(low: int, high: int, count: int = rank) -> list[int]:
        return [int(n) for n in rng.integers(low, high, count)]

    while True:
        group, size, kernel, strides, dilations = (int(rng.choice([1, 2])), *(numbers(1, n) for n in (6, 4, 4, 3)))
        kind = rng.choice(_KINDS)
        attributes = [f"group={group}", f"strides={strides}", f"dilations={dilations}"]
        attributes += [f"pads={numbers(0, 3, 2 * rank)}"] if kind == "NOTSET" else [f'auto_pad="{kind}"']
        shape = (6, 4 // group, *kernel)
        if op_type == "ConvTranspose":
            shape = (4, 6 // group, *kernel)
            attributes.append(f"output_padding={[int(rng.integers(0, s)) for s in strides]}")
            if rng.random() < 0.6:
                lengths = [_length(rng, *axis) for axis in zip(size, kernel, strides, dilations, strict=True)]
                attributes.append(f"output_shape={lengths}")
        dims = [str(n) if rng.random() < 0.7 else f"D{k}" for k, n in enumerate(size)]
        model = build(
            f"""g (float[N,4,{",".join(dims)}] x) => (float[N,6,{",".join("?" * rank)}] y) {{
                [layer] t = {op_type}<{", ".join(attributes)}>(x, W, b) y = Identity(t) }}""",
            opset=int(rng.choice([11, 13, 17])), W=normal(seed, *shape) / 3, b=normal(seed + 1, 6),
        )  # fmt: skip
        feed = {"x": normal(seed + 2, 2, 4, *size)}
        try:
            output = _run(model.SerializeToString(), feed)
        except Exception:  # sizes that do not go together
            continue
        if output.size and output.any():
            yield model, feed


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize(("op_type", "rank"), [("Conv", 1), ("Conv", 2), ("Conv", 3), ("ConvTranspose", 2)])
def test_a_deploy_model(op_type: str, rank: int, seed: int, tmp_path: Path) -> None:
    for number, (model, feed) in zip(range(4), _random(seed * 100, op_type, rank), strict=False):
        flow = Flow.of(model, tmp_path / str(number)).run(feed)
        fake = _run(flow.fake_quant, feed)
        assert sqnr(_run(model.SerializeToString(), feed), fake) > 20
        (deployed,) = amct_onnx.deployed_session(flow.deploy).run(None, feed)
        np.testing.assert_allclose(deployed, fake, atol=1e-4)


@pytest.mark.parametrize("target", ["onnxruntime", "openvino", "tensorrt", "ascend"])
@pytest.mark.parametrize(
    ("op_type", "rank"), [("Conv", 1), ("ConvTranspose", 1), ("ConvTranspose", 2), ("ConvTranspose", 3)]
)
def test_every_target(op_type: str, rank: int, target: str, tmp_path: Path) -> None:
    for number, (model, feed) in zip(range(6), _random(7, op_type, rank), strict=False):
        if target == "ascend" and (op_type, rank) in (("ConvTranspose", 1), ("ConvTranspose", 3)):
            with pytest.raises(AmctError, match=f"its weight has {rank + 2} dimensions"):
                amct_onnx.quantize(model, [feed], target=target, effort="fast")
            continue
        result = amct_onnx.quantize(model, [feed], target=target, effort="fast")
        files = result.save(tmp_path / f"{number}", inspect=False).files
        file = next(file for file in files if file.endswith(".onnx") and "deploy" not in file)
        assert sqnr(_run(model.SerializeToString(), feed), _run(file, feed)) > 20


def test_an_output_that_is_smaller_than_the_input_is_left_alone() -> None:
    """No shapes can be inferred behind it, which ONNX Runtime needs."""
    model = build(
        """g (float[N,2,3,3] x) => (float[N,3,?,?] y, float[N,3,3,3] z) {
            [small] y = ConvTranspose<output_shape=[2,4]>(x, A) [other] z = Conv(x, B) }""",
        A=normal(1, 2, 3, 2, 2), B=normal(2, 3, 2, 1, 1),
    )  # fmt: skip
    result = amct_onnx.quantize(model, [{"x": normal(3, 2, 2, 3, 3)}], target="ascend", effort="fast")
    assert {d.layer: d.quantized or d.reason for d in result.decisions} == {
        "small": "its output_shape is smaller than its input",
        "other": True,
    }
