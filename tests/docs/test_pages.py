"""Every block of code in the READMEs and in docs/ runs on the samples of the repository, the same in both languages."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from page_runner import PYTHON, SHELLS, SHOWN, Block, blocks

ROOT = Path(__file__).resolve().parents[2]
RUNNER = ROOT / "tests" / "support" / "page_runner.py"
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
ENGLISH = [page for page in PAGES if not page.name.endswith(".zh.md")]
QUICK = ("ocr.md", "large_model.md", "qat.md", "amct_formats.md")
# Pages for those who work on the project itself, which are in English only.
OF_DEVELOPERS = ("architecture.md", "extending.md", "accuracy.md", "hard_networks.md", "amct_formats.md")


def name_of(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def runs(block: Block) -> bool:
    return block.tag in (*PYTHON, *SHELLS)


def translation_of(page: Path) -> Path:
    return ROOT / "README_zh.md" if page.name == "README.md" and page.parent == ROOT else page.with_suffix(".zh.md")


def marked(page: Path) -> Any:
    """The page, as a parameter that counts as slow unless its code is quick."""
    return pytest.param(page, marks=() if page.name in QUICK else pytest.mark.slow)


WITH_CODE = [page for page in ENGLISH if any(map(runs, blocks(page)))]
TRANSLATED = [page for page in ENGLISH if "decisions" not in page.parts and page.name not in OF_DEVELOPERS]


@pytest.mark.parametrize("page", list(map(marked, WITH_CODE)), ids=map(name_of, WITH_CODE))
def test_the_code_of_a_page_runs(page: Path, tmp_path: Path) -> None:
    (tmp_path / "samples").symlink_to(ROOT / "samples", target_is_directory=True)
    ran = subprocess.run(
        [sys.executable, str(RUNNER), str(page), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    assert ran.returncode == 0, f"{ran.stdout[-3000:]}\n{ran.stderr[-3000:]}"


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README_zh.md"], ids=name_of)
def test_each_block_says_what_it_is(page: Path) -> None:
    assert [block for block in blocks(page) if block.tag not in (*PYTHON, *SHELLS, *SHOWN)] == []


def without_comments(block: Block) -> str:
    """What a block does, without what it says."""
    if block.tag in PYTHON:
        return ast.unparse(ast.parse(block.code))
    return "\n".join(
        line for line in (re.sub(r"(^|\s)#.*", "", line).rstrip() for line in block.code.splitlines()) if line
    )


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_page_has_the_same_code_in_both_languages(page: Path) -> None:
    english, chinese = (
        [without_comments(block) for block in blocks(it) if runs(block)] for it in (page, translation_of(page))
    )
    assert chinese == english


@pytest.mark.parametrize("page", TRANSLATED, ids=name_of)
def test_a_page_has_the_same_parts_in_both_languages(page: Path) -> None:
    def shape(text: str) -> list[str]:
        return re.findall(
            r"^(#+ |\| --- |<!-- made: .* -->)", re.sub(r"^ *```.*?^ *```", "", text, flags=re.M | re.S), re.M
        )

    assert shape(translation_of(page).read_text("utf-8")) == shape(page.read_text("utf-8"))


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "README_zh.md"], ids=name_of)
def test_the_links_of_a_readme_lead_somewhere(page: Path) -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text("utf-8"))
    assert len(links) > 10
    assert [link for link in links if not (ROOT / link).exists()] == []


def test_a_block_that_fails_is_seen(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    for code in (
        "```python\nx = 1\n```\n\n!!! note\n    ```python\n    assert x == 2\n    ```\n",
        "```bash\nfalse\ntrue\n```\n",
    ):
        page.write_text(code)
        folder = tmp_path / str(len(code))
        folder.mkdir()
        ran = subprocess.run([sys.executable, str(RUNNER), str(page), str(folder)], capture_output=True, check=False)
        assert ran.returncode != 0
