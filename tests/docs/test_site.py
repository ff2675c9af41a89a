"""The site of docs/ builds without a warning, and no table of it is behind the code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "docs" / "site"))
pytest.importorskip("mkdocs", reason="the extra docs is not installed")

import messages_page  # noqa: E402
import options_page  # noqa: E402


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    ran = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert ran.returncode == 0, f"{ran.stdout}{ran.stderr}"
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("part", "word"), [("", "Placed by prices"), ("zh/", "价格")])
def test_the_site_is_built_in_both_languages(site: Path, part: str, word: str) -> None:
    pages = {path.relative_to(site / part).as_posix() for path in (site / part).rglob("*.html")}
    assert {"index.html", *(f"{name}/index.html" for name in ("quick_start", "options", "messages", "api"))} <= pages
    assert word in (site / part / "how_it_works/index.html").read_text("utf-8")
    assert "<math" in (site / part / "how_it_works/index.html").read_text("utf-8")
    options = (site / part / "options/index.html").read_text("utf-8")
    assert "--max_slowdown" in options
    assert "--effort" in options
    assert "made:" not in options


@pytest.mark.slow
def test_no_page_asks_another_server_for_anything(site: Path) -> None:
    pages = list(site.rglob("*.html"))
    asking = [
        path.name
        for path in pages
        for line in path.read_text("utf-8").splitlines()
        if any(f'{word}="http' in line and "canonical" not in line for word in ("src", "<link href"))
    ]
    assert asking == []


def test_every_option_is_translated() -> None:
    known = options_page.translations()
    assert sorted(options_page.texts() - set(known)) == []
    assert sorted(set(known) - options_page.texts()) == []
    assert [text for text, chinese in known.items() if not any("一" <= letter <= "鿿" for letter in chinese)] == []


def test_every_message_of_the_code_has_a_cause_and_a_cure() -> None:
    found, known = set(messages_page.collected()), messages_page.behind()
    assert sorted(found - set(known)) == []
    assert sorted(set(known) - found) == []
    for text, told in known.items():
        for part in (told.cause, told.cure, told.cause_zh, told.cure_zh):
            assert part.strip(), text
        assert any("一" <= letter <= "鿿" for letter in told.cause_zh), text


def test_messages_are_collected_from_all_forms(tmp_path: Path) -> None:
    found = messages_page.collected()
    assert any("is no preset" in text for text in found)  # raised with an f-string
    assert any("opset" in text and "export it again" in text for text in found)  # from a variable
    assert any("give either --data or --statistics" in text for text in found)  # a parser's
    assert any("columns than they have weights" in text for text in found)  # a warning
