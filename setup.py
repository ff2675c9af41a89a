"""The one thing that pyproject.toml cannot say: an optional C extension in Python's stable ABI.

Without a compiler the build goes on and the package counts with numpy.
"""

import sys

from setuptools import Extension, setup

setup(
    ext_modules=[
        Extension(
            "amct_onnx.core.stats._counting",
            ["src/amct_onnx/core/stats/_counting.c"],
            extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-fno-trapping-math", "-fno-math-errno"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp310"}},
)
