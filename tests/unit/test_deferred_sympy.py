"""onnx_ir is imported without sympy, and has it when it needs it. Each case is a process of its own."""

from __future__ import annotations

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest


def run(script: str, *, folder: Path | None = None) -> None:
    """Run `script`, which asserts; `folder` comes first in its path."""
    head = f"import sys; sys.path.insert(0, {str(folder)!r})\n" if folder else "import sys\n"
    done = subprocess.run(
        [sys.executable, "-c", head + textwrap.dedent(script)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_importing_the_package_loads_neither() -> None:
    run("""
        import amct_onnx
        assert "sympy" not in sys.modules and "onnx_ir" not in sys.modules
    """)


@pytest.mark.parametrize("module", ["graph.layers", "files.onnx_file", "observe.histograms"])
def test_whichever_module_of_ours_is_first(module: str) -> None:
    run(f"""
        import amct_onnx.{module}
        assert "onnx_ir" in sys.modules and "sympy" not in sys.modules
    """)


def test_symbolic_dimensions_compute_with_the_real_one() -> None:
    run("""
        import amct_onnx
        import onnx_ir as ir
        model = ir.from_onnx_text('''<ir_version: 8, opset_import: ["" : 17]>
            g (float[N, 3] x) => (float[N, 3] y) { y = Relu (x) }''')
        copy = ir.from_proto(ir.to_proto(model.clone()))
        n = copy.graph.inputs[0].shape[0]
        assert n == "N" and "sympy" not in sys.modules
        assert str(n + 1) == "N + 1" and str((n * 6 / 2).simplify()) == "3*N"
        assert str(ir.SymbolicDim("Max(N, 3)") + 1) == "Max(3, N) + 1" and (n + 1).evaluate({"N": 4}) == 5
        import sympy
        assert isinstance((n + 1)._expr, sympy.Expr) and sympy.Symbol is sys.modules["sympy"].Symbol
    """)


def test_a_sympy_or_onnx_ir_that_is_there_already_is_used() -> None:
    run("""
        import sympy
        import amct_onnx
        import onnx_ir
        assert onnx_ir._core.sympy is sympy
    """)
    run("""
        import onnx_ir
        import amct_onnx
        assert onnx_ir._core.sympy is sys.modules["sympy"]
    """)


def test_threads_that_import_sympy_meanwhile_get_the_real_one() -> None:
    run("""
        import threading
        import amct_onnx
        found, errors = [], []
        def work(order):
            try:
                if order:
                    import onnx_ir
                import sympy.core
                from sympy import Symbol
                found.append(type(sympy) is type(sys) and sympy.Integer(2) + Symbol("x") - sympy.Symbol("x") == 2)
            except BaseException as error:
                errors.append(error)
        threads = [threading.Thread(target=work, args=(i % 2,)) for i in range(4)]
        [thread.start() for thread in threads]
        [thread.join() for thread in threads]
        assert found == [True] * 4 and not errors, errors
        import onnx_ir
        assert str(onnx_ir.SymbolicDim("N") + 1) == "N + 1"
    """)


@pytest.mark.parametrize(
    "use",
    [
        "class Dim(sympy.Symbol): pass",
        "Kind = sympy.Expr | None",
        "from sympy import Max",
        "import sympy.core",
        "assert sympy.Integer(3) - 3 == 0",
        "Kind = sympy.Expr\nassert isinstance(sympy.Symbol('x'), Kind) and issubclass(sympy.Symbol, Kind)",
    ],
)
def test_another_onnx_ir_that_does_more_while_it_is_imported(tmp_path: Path, use: str) -> None:
    package = tmp_path / "onnx_ir"
    package.mkdir()
    (package / "__init__.py").write_text("from onnx_ir import _core\n")
    (package / "_core.py").write_text(f"import sympy\n{use}\ndef two(): return sympy.Integer(2)\n")
    run(
        """
        import amct_onnx
        import onnx_ir
        import sympy
        assert onnx_ir.__file__.startswith(sys.path[0]) and onnx_ir._core.two() == sympy.Integer(2)
        """,
        folder=tmp_path,
    )


def test_an_error_of_the_import_itself_comes_out(tmp_path: Path) -> None:
    (tmp_path / "onnx_ir").mkdir()
    (tmp_path / "onnx_ir" / "__init__.py").write_text("from onnx_ir import _core\n")
    (tmp_path / "onnx_ir" / "_core.py").write_text("import sympy\nimport a_module_that_is_missing\n")
    run(
        """
        import amct_onnx
        try:
            import onnx_ir
        except ModuleNotFoundError as error:
            assert error.name == "a_module_that_is_missing"
        else:
            raise AssertionError
        """,
        folder=tmp_path,
    )
