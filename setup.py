"""What pyproject.toml cannot say: optional C extensions in Python's stable ABI, one of them under AMCT's file name.

Without a compiler the build goes on; the package then counts with numpy and observes through onnxruntime-extensions.
"""

import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FLAGS = [] if sys.platform == "win32" else ["-O3", "-fno-trapping-math", "-fno-math-errno"]
OPERATORS = "amct_onnx.custom_op.libamct_onnx_ops"


class BuildExtensions(build_ext):
    """Names the library of the operators as scripts written for AMCT look for it: without a tag of Python's ABI."""

    def get_ext_filename(self, fullname: str) -> str:
        name: str = super().get_ext_filename(fullname)
        return name.replace(".abi3.", ".") if fullname in (OPERATORS, OPERATORS.rpartition(".")[2]) else name


def extension(name: str, source: str) -> Extension:
    return Extension(
        name,
        [f"src/amct_onnx/{source}"],
        extra_compile_args=FLAGS,
        libraries=[] if sys.platform == "win32" else ["m"],
        py_limited_api=True,
        optional=True,
    )


setup(
    ext_modules=[
        extension("amct_onnx.numerics.statistics._accumulator", "numerics/statistics/_accumulator.c"),
        extension(OPERATORS, "observe/_operators.c"),
    ],
    cmdclass={"build_ext": BuildExtensions},
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
