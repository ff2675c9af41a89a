"""`make streaming`: calibrate with 100,000 images of tar shards and parquet, in memory that does not grow with them.

The images are made here, a few of them broken. A tiny model is quantized with the first thousand and with all of them,
each in a process of its own, whose peak memory the system tells. The exit code is 1 when the peak grows by more than
30 MiB, or when not every image is accounted for.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FEW, GROWTH = 1000, 30  # images; MiB
SHARD, GROUP = 1000, 500  # images in a tar file; in a group of rows of the parquet file
SIDE, DISTINCT = 32, 997  # pixels; so many images differ, and come again and again
BROKEN = 9973  # one image in so many
KINDS = ("tar", "parquet")


def encoded(count: int) -> Iterator[bytes]:
    """JPEG files, some of which end early."""
    from PIL import Image

    random = np.random.default_rng(0)
    distinct = []
    for _ in range(DISTINCT):
        stream = io.BytesIO()
        coarse = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
        Image.fromarray(coarse).resize((SIDE + 8, SIDE)).save(stream, "jpeg", quality=80)
        distinct.append(stream.getvalue())
    for number, image in zip(range(count), itertools.cycle(distinct)):
        yield image[:100] if number % BROKEN == BROKEN // 2 else image


def write_tars(folder: Path, count: int) -> None:
    """`count` images in tar files, each with its class beside it."""
    folder.mkdir()
    images = encoded(count)
    for shard in range(-(-count // SHARD)):
        with tarfile.open(folder / f"shard-{shard:06}.tar", "w") as archive:
            for index, image in enumerate(itertools.islice(images, SHARD)):
                for ending, content in (("jpg", image), ("cls", b"1")):
                    member = tarfile.TarInfo(f"{shard:06}{index:06}.{ending}")
                    member.size = len(content)
                    archive.addfile(member, io.BytesIO(content))


def write_parquet(folder: Path, count: int) -> None:
    """The same images in one parquet file, as Hugging Face writes them."""
    import pyarrow
    from pyarrow.parquet import ParquetWriter

    folder.mkdir()
    kind = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])
    schema = pyarrow.schema([("image", kind), ("label", pyarrow.int64())])
    images = encoded(count)
    with ParquetWriter(folder / "train-00000-of-00001.parquet", schema) as writer:
        while group := [{"bytes": image, "path": None} for image in itertools.islice(images, GROUP)]:
            writer.write_table(pyarrow.table({"image": group, "label": [1] * len(group)}, schema=schema))


def write_model(path: Path) -> None:
    """A network that costs little beside the decoding."""
    import onnx

    model = onnx.parser.parse_model(
        """<ir_version: 8, opset_import: ["": 17]> g (float[N,3,32,32] x) => (float[N,4] y) {
            a = Conv <strides=[4,4]> (x, w) r = Relu (a) p = GlobalAveragePool (r)
            f = Flatten (p) y = MatMul (f, v) }"""
    )
    random = np.random.default_rng(0)
    for name, shape in (("w", (8, 3, 4, 4)), ("v", (8, 4))):
        array = random.standard_normal(shape).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(array, name))
    onnx.save(model, path)


def calibrate(model: str, data: str, limit: int) -> None:
    """Quantize with the first `limit` images, and print what that took."""
    import amct_onnx

    begin = time.perf_counter()
    result = amct_onnx.quantize(
        model, data, images="unit", limit=limit, effort="fast", on_bad_data="skip", progress=False
    )
    assert result.data is not None
    seconds = time.perf_counter() - begin
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1 << 20 if sys.platform == "darwin" else 1 << 10)
    used, skipped = result.data.samples, result.data.skipped.samples
    print(json.dumps({"samples": used, "skipped": skipped, "seconds": seconds, "mebibytes": peak}))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000, help="so many, 100,000 if not given")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS)
    parser.add_argument("--one", nargs=3, metavar=("MODEL", "DATA", "LIMIT"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one is not None:
        model, data, limit = arguments.one
        calibrate(model, data, int(limit))
        return 0
    wrong = False
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_model(folder / "model.onnx")
        print(f"{'data':8} {'images':>8} {'left out':>9} {'seconds':>8} {'images/s':>9} {'peak MiB':>9}")
        for kind in arguments.kinds:
            (write_tars if kind == "tar" else write_parquet)(folder / kind, arguments.images)
            peaks = []
            for count in (min(FEW, arguments.images), arguments.images):
                command = [
                    sys.executable,
                    __file__,
                    "--one",
                    str(folder / "model.onnx"),
                    str(folder / kind),
                    str(count),
                ]
                run = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, check=True, text=True)
                found = json.loads(run.stdout)
                peaks.append(found["mebibytes"])
                wrong |= found["samples"] + found["skipped"] != count
                rate = count / found["seconds"]
                print(
                    f"{kind:8} {found['samples']:8} {found['skipped']:9} {found['seconds']:8.1f} {rate:9.0f} "
                    f"{found['mebibytes']:9.1f}",
                    flush=True,
                )
            wrong |= peaks[1] - peaks[0] > GROWTH
            print(f"{kind:8} the peak grows by {peaks[1] - peaks[0]:.1f} MiB, {GROWTH} are allowed", flush=True)
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
