"""The one thing that pyproject.toml cannot say: optional C extensions in Python's stable ABI.

Without a compiler the build goes on; the package then counts with numpy and observes through onnxruntime-extensions.
"""

import sys

from setuptools import Extension, setup

FLAGS = [] if sys.platform == "win32" else ["-O3", "-fno-trapping-math", "-fno-math-errno"]


def extension(folder: str, name: str) -> Extension:
    return Extension(
        f"amct_onnx.{folder.replace('/', '.')}.{name}",
        [f"src/amct_onnx/{folder}/{name}.c"],
        extra_compile_args=FLAGS,
        libraries=[] if sys.platform == "win32" else ["m"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        extension("numerics/statistics", "_accumulator"),
        extension("observe", "_operators"),
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
