"""`make draws`: how much a quantized model owes to the samples that happened to calibrate it.

Each draw takes other samples of those that may calibrate, and the model is judged on test data that none of them has.
The decibels are of all samples together and of the median sample; a table has the least, the median and the most over
the draws. With --each every draw is printed with the steps that were kept.
"""

from __future__ import annotations

import argparse
from statistics import median

import onnx_ir as ir
from beside_peers import print_table
from processes import machine
from promises import ALL, TESTED, drawn, single

import amct_onnx as amct
from amct_onnx.measure.output_noise import OutputNoise
from amct_onnx.numerics.sample_noise import decibel, medians, pooled

HEADER = ["", "all: least", "median", "most", "median sample: least", "median", "most"]


def judged(name: str, judge: OutputNoise, draw: int, args: argparse.Namespace, effort: str) -> tuple[float, float]:
    """Decibels on test data of one draw: of all samples, and of the median one."""
    data = drawn(name, draw, args.samples)
    result = amct.quantize(ALL[name].case.model, data.get("", data), effort=effort, target=args.target)
    noise = judge.by_sample(result.lowered.session())
    one, two = (decibel(float(of(noise, judge.signal).mean())) for of in (pooled, medians))
    if args.each:
        kept = ", ".join(step.name for step in result.steps if step.kept)
        print(f"{name}, {effort}, draw {draw}: {one:.2f} and {two:.2f} dB; kept: {kept or 'nothing'}", flush=True)
    return one, two


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=list(ALL), default=["mobilenetv2"])
    parser.add_argument("--draws", type=int, default=8)
    parser.add_argument("--first", type=int, default=0, help="the number of the first draw")
    parser.add_argument("--samples", type=int, default=96, help="that calibrate")
    parser.add_argument("--efforts", nargs="+", default=["fast", "default"])
    parser.add_argument("--target", default="onnxruntime")
    parser.add_argument("--each", action="store_true", help="print each draw as well")
    args = parser.parse_args()
    print(f"{machine()}\n{args.samples} samples, {args.draws} draws, target {args.target}; dB on test data\n")
    lines = []
    for name in args.models:
        task = ALL[name]
        judge = OutputNoise(ir.load(task.case.model), [single(feed) for feed, _ in task.test(TESTED)])
        for effort in args.efforts:
            draws = range(args.first, args.first + args.draws)
            found = [judged(name, judge, draw, args, effort) for draw in draws]
            cells = [f"{of(values):.2f}" for values in zip(*found, strict=True) for of in (min, median, max)]
            lines.append((f"{name}, {effort}", cells))
    print_table(HEADER, lines)


if __name__ == "__main__":
    main()
