"""Write images as calibration data of `amct_onnx calibration`: one file that holds one batch.

Run it from the sample folder: ``python ./src/process_data.py``.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

RESNET = Path(__file__).resolve().parents[2] / "resnet-101"
sys.path.insert(0, str(RESNET / "src"))

from images import SampleError, load_batch, read_labels  # noqa: E402  # the other sample's preprocessing


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description="Write the first images of a folder as one float32 array of shape [batch_size, 3, 224, 224].",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--images", default=RESNET / "data" / "images", type=Path, help="folder with image_label.txt")
    parser.add_argument("--output", default=Path("data/calibration/calibration.bin"), type=Path, help="file to write")
    parser.add_argument("--batch_size", default=16, type=int, help="number of images")
    return parser.parse_args()


def main() -> None:
    """Preprocess the images and write the batch."""
    options = parse_arguments()
    images = read_labels(options.images)
    if not 0 < options.batch_size <= len(images):
        raise SampleError(f"--batch_size must be between 1 and {len(images)}, the number of images")
    batch = load_batch(images[: options.batch_size], options.batch_size)
    options.output.parent.mkdir(parents=True, exist_ok=True)
    batch.tofile(options.output)
    print(f"[INFO] {options.output}: {batch.dtype} {list(batch.shape)}, {batch.nbytes} bytes")


if __name__ == "__main__":
    try:
        main()
    except (SampleError, OSError) as error:
        sys.exit(f"[ERROR] {error}")
