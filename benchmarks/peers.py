"""The tools that `make bench` and `make accuracy` compare, as data, and a script that runs one in its own interpreter.

Each side turns a float model and the images of an .npy file [N, ...] into a quantized model; a model of several inputs
has an .npz file with an array for each. Images are read one at a time, so that no side has them all in memory unless it
keeps them itself. The script needs numpy and that side's packages only. The settings are those that the documentation
of each tool shows: onnxruntime.ai, docs.openvino.ai (for nncf), quark.docs.amd.com, quic.github.io/aimet-pages,
nvidia.github.io/Model-Optimizer.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jobs import Job, Reader
from processes import limit_memory, peak_mebibytes


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """One setting of a side. `plain`: its min-max setting, which every run measures; others are for --all.

    `opset` is the least that the scheme works with; the benchmark converts a model below it, outside of what it times.
    `most`: images that its time allows. `hoards`: it keeps all tensors of all images in memory.
    """

    name: str
    run: Callable[[Job], None]
    plain: bool = True
    opset: int = 0
    most: int | None = None
    hoards: bool = False


@dataclass(frozen=True, kw_only=True)
class Side:
    """A tool: `module` must be found for it to be installed, `distribution` tells its version."""

    name: str
    module: str
    distribution: str
    schemes: tuple[Scheme, ...]

    def version(self) -> str | None:
        """Its version in this interpreter; None if it is not installed."""
        try:
            if importlib.util.find_spec(self.module) is None:
                return None
            return importlib.metadata.version(self.distribution)
        except (ImportError, ValueError):  # a parent package that is missing or breaks
            return None


# --- float inference, this tool


def _float_inference(job: Job) -> None:
    session = job.session()
    for feed in job.feeds():
        session.run(None, feed)


def _amct_onnx(**options: Any) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        import amct_onnx

        amct_onnx.quantize(str(job.model), str(job.images), **options).save(str(job.output.with_suffix("")))

    return run


def _ascend(**options: Any) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        import amct_onnx

        result = amct_onnx.quantize(str(job.model), str(job.images), target="ascend", **options)
        result.save(str(job.scratch("ascend")))
        job.scratch("ascend_deploy_model.onnx").rename(job.output)

    return run


def _amct_recipe(quantize: Callable[..., Callable[[Job], None]]) -> Callable[[Job], None]:
    """Settings of AMCT are obeyed as they are; those that it writes by default are IFMR and ARQ."""

    def run(job: Job) -> None:
        import amct_onnx

        settings = job.scratch("config.json")
        amct_onnx.create_quant_config(str(settings), str(job.model))
        quantize(settings=str(settings))(job)

    return run


# --- peers


def _onnxruntime(
    method: str = "MinMax", *, form: str = "QDQ", activation: str = "QInt8", per_channel: bool = False
) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        prepared = job.scratch("prepared.onnx")
        try:
            quant_pre_process(str(job.model), str(prepared))
        except Exception:  # it raises nothing more special where it cannot infer a shape
            quant_pre_process(str(job.model), str(prepared), skip_symbolic_shape=True)
        quantize_static(
            str(prepared),
            str(job.output),
            Reader(job.feeds()),
            quant_format=QuantFormat[form],
            per_channel=per_channel,
            activation_type=QuantType[activation],
            calibrate_method=CalibrationMethod[method],
        )

    return run


def _nncf(**options: Any) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        import nncf
        import onnx

        feeds = job.feeds()
        arguments: dict[str, Any] = {"subset_size": len(feeds)}
        if options.get("mixed"):
            arguments["preset"] = nncf.QuantizationPreset.MIXED
        if not options.get("bias_correction", True):
            arguments["advanced_parameters"] = nncf.AdvancedQuantizationParameters(disable_bias_correction=True)
        if options.get("accurate"):
            arguments["fast_bias_correction"] = False
        onnx.save(nncf.quantize(onnx.load(job.model), nncf.Dataset(feeds), **arguments), job.output)

    return run


def _quark(method: str, *, learned: bool = False) -> Callable[[Job], None]:
    """uint8 activations and int8 weights per channel."""

    def run(job: Job) -> None:
        from quark.onnx import ModelQuantizer, QConfig
        from quark.onnx.quantization.config.algorithm import AdaRoundConfig
        from quark.onnx.quantization.config.spec import CalibMethod, Int8Spec, QLayerConfig, QuantGranularity, UInt8Spec

        weight = Int8Spec(calibration_method=CalibMethod.MinMax, quant_granularity=QuantGranularity.Channel)
        activation = UInt8Spec(calibration_method=CalibMethod[method])
        feeds = job.feeds()
        adaround = AdaRoundConfig(data_size=len(feeds), batch_size=2, early_stop=True)  # as in quark's own presets
        algorithms = [adaround] if learned else None
        config = QConfig(global_config=QLayerConfig(activation=activation, weight=weight), algo_config=algorithms)
        ModelQuantizer(config).quantize_model(str(job.model), str(job.output), Reader(feeds))

    return run


def _quark_default(job: Job) -> None:
    from quark.onnx import ModelQuantizer, QConfig

    reader = Reader(job.feeds())
    ModelQuantizer(QConfig.get_default_config("A8W8")).quantize_model(str(job.model), str(job.output), reader)


def _aimet(scheme: str, *, equalized: bool = False, learned: int | None = None) -> Callable[[Job], None]:
    """`learned`: weights by AdaRound on that many images."""

    def run(job: Job) -> None:
        import onnx
        from aimet_onnx import QuantizationSimModel, apply_adaround
        from aimet_onnx.batch_norm_fold import fold_all_batch_norms_to_weight
        from aimet_onnx.cross_layer_equalization import equalize_model

        model = onnx.load(job.model)
        if equalized:
            equalize_model(model)
        else:
            fold_all_batch_norms_to_weight(model)
        sim = QuantizationSimModel(model, quant_scheme=scheme, providers=["CPUExecutionProvider"])
        if learned is not None:
            apply_adaround(sim, list(job.feeds(learned)))
        sim.compute_encodings(job.feeds())
        onnx.save(sim.to_onnx_qdq(), job.output)

    return run


def _modelopt(method: str) -> Callable[[Job], None]:
    def run(job: Job) -> None:
        from modelopt.onnx.quantization import quantize

        arrays = job.feeds().arrays()
        shapes = {name: "x".join(str(size) for size in (1, *array.shape[1:])) for name, array in arrays.items()}
        quantize(
            str(job.model),
            calibration_data=arrays,
            calibration_method=method,
            calibration_shapes=",".join(f"{name}:{shape}" for name, shape in shapes.items()),
            calibration_eps=["cpu"],
            high_precision_dtype="fp32",
            output_path=str(job.output),
        )

    return run


FLOOR = Side(
    name="float inference",
    module="onnxruntime",
    distribution="onnxruntime",
    schemes=(Scheme(name="batch 1", run=_float_inference),),
)
OURS = Side(
    name="amct_onnx",
    module="amct_onnx",
    distribution="amct-onnx",
    schemes=(
        Scheme(name="fast", run=_amct_onnx(effort="fast")),
        Scheme(name="default", run=_amct_onnx()),
        Scheme(name="best", run=_amct_onnx(effort="best"), plain=False),
        Scheme(name="full int8", run=_amct_onnx(full_int8=True)),
    ),
)
# Deploy models, which only `deployed_session` runs: for accuracy, not for latency.
ASCEND = Side(
    name="amct_onnx ascend",
    module="amct_onnx",
    distribution="amct-onnx",
    schemes=(
        Scheme(name="fast", run=_ascend(effort="fast"), plain=False),
        Scheme(name="default", run=_ascend()),
        Scheme(name="best", run=_ascend(effort="best"), plain=False),
        Scheme(name="AMCT's recipe (IFMR + ARQ)", run=_amct_recipe(_ascend)),
    ),
)
# The same recipe in a model for ONNX Runtime: for `make hard`.
RECIPE = Side(
    name="AMCT's recipe",
    module="amct_onnx",
    distribution="amct-onnx",
    schemes=(Scheme(name="IFMR + ARQ", run=_amct_recipe(_amct_onnx)),),
)
PEERS = (
    Side(
        name="onnxruntime",
        module="onnxruntime.quantization",
        distribution="onnxruntime",
        schemes=(
            Scheme(name="min-max Q/DQ", run=_onnxruntime()),
            Scheme(name="min-max Q/DQ per channel", run=_onnxruntime(activation="QUInt8", per_channel=True), opset=13),
            Scheme(name="min-max QOperator", run=_onnxruntime(form="QOperator", activation="QUInt8")),
            Scheme(
                name="min-max QOperator per channel",
                run=_onnxruntime(form="QOperator", activation="QUInt8", per_channel=True),
                plain=False,
                opset=13,
            ),
            Scheme(
                name="percentile per channel",
                run=_onnxruntime("Percentile", activation="QUInt8", per_channel=True),
                plain=False,
                opset=13,
                hoards=True,
            ),
            Scheme(
                name="entropy per channel",
                run=_onnxruntime("Entropy", activation="QUInt8", per_channel=True),
                plain=False,
                opset=13,
                hoards=True,
            ),
        ),
    ),
    Side(
        name="nncf",
        module="nncf",
        distribution="nncf",
        schemes=(
            Scheme(name="min-max mixed", run=_nncf(mixed=True, bias_correction=False), opset=13),
            Scheme(name="default", run=_nncf(), plain=False, opset=13),
            Scheme(name="mixed", run=_nncf(mixed=True), plain=False, opset=13),
            Scheme(name="mixed, accurate bias correction", run=_nncf(mixed=True, accurate=True), plain=False, opset=13),
        ),
    ),
    Side(
        name="amd-quark",
        module="quark.onnx",
        distribution="amd-quark",
        schemes=(
            Scheme(name="min-max per channel", run=_quark("MinMax"), opset=13),
            Scheme(name="default (A8W8)", run=_quark_default, plain=False, opset=13),
            Scheme(name="percentile per channel", run=_quark("Percentile"), plain=False, opset=13),
            Scheme(name="AdaRound", run=_quark("Percentile", learned=True), plain=False, opset=13, most=32),
        ),
    ),
    Side(
        name="aimet-onnx",
        module="aimet_onnx",
        distribution="aimet-onnx",
        schemes=(
            Scheme(name="min-max", run=_aimet("min_max"), opset=13),
            Scheme(name="tf-enhanced", run=_aimet("tf_enhanced"), plain=False, opset=13),
            Scheme(name="equalization, tf-enhanced", run=_aimet("tf_enhanced", equalized=True), plain=False, opset=13),
            Scheme(name="AdaRound on 32, tf-enhanced", run=_aimet("tf_enhanced", learned=32), plain=False, opset=13),
        ),
    ),
    Side(
        name="nvidia-modelopt",
        module="modelopt.onnx",
        distribution="nvidia-modelopt",
        schemes=(
            Scheme(name="max", run=_modelopt("max"), opset=13),
            Scheme(name="default (entropy)", run=_modelopt("entropy"), plain=False, opset=13),
        ),
    ),
)
SIDES = {side.name: side for side in (FLOOR, OURS, *PEERS)}
_ALL = SIDES | {side.name: side for side in (ASCEND, RECIPE)}


def find_scheme(side: str, scheme: str) -> Scheme:
    """The scheme with that name."""
    return next(candidate for candidate in _ALL[side].schemes if candidate.name == scheme)


def main() -> int:
    """`--installed` prints the versions of the sides of this interpreter; otherwise one scheme runs."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--installed", action="store_true")
    parser.add_argument("--side", choices=_ALL)
    parser.add_argument("--scheme")
    for name in ("model", "images", "folder", "result"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--most", type=int, help="images that may be used (all)")
    args = parser.parse_args()
    if args.installed:
        print(json.dumps({side.name: version for side in SIDES.values() if (version := side.version()) is not None}))
        return 0
    limit_memory()
    os.chdir(args.folder)  # some tools leave files where they are started
    job = Job(model=args.model, images=args.images, folder=args.folder, most=args.most)
    find_scheme(args.side, args.scheme).run(job)
    found = {"peak": peak_mebibytes(), "processor": time.process_time()}
    args.result.write_text(json.dumps(found), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
