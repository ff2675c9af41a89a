"""Collects every message that users may meet from the code, and makes the tables of what is behind each.

A message is what an AmctError is raised with, what a log warns of, or what the parser of a command line says. `…`
stands for what is filled in. `messages.yml` has cause and cure of each, in both languages; a test holds it to the code.
"""

from __future__ import annotations

import ast
import functools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
SOURCE = ROOT / "src" / "amct_onnx"
TABLE = Path(__file__).with_name("messages.yml")
GAP = "…"
_SAYS = re.compile(r"[A-Za-z]{2,}.*\W[A-Za-z]{2,}", re.DOTALL)  # at least two words of its own
# Modules that make warnings as values, which are logged elsewhere: each sentence of theirs is a message.
_SENTENCES = ("data/poor_data.py",)
_WARNS = ("_log.warning", "_log.error", "warnings.warn")
_OPTIONS = ("named", "given", "of_images")  # functions of `words`, which call options by their names
_PARSERS = ("error",)  # methods of parsers that end the process with a message
HEADS = {"en": ("message", "cause", "cure"), "zh": ("消息", "原因", "处理")}


@dataclass(frozen=True, kw_only=True)
class Behind:
    """What is behind a message, and what to do about it."""

    cause: str
    cure: str
    cause_zh: str
    cure_zh: str


def tables(language: str) -> str:
    """A heading and a table for each topic of the committed table that the code has messages of."""
    known, found = behind(), set(collected())
    parts = []
    for topic in topics():
        rows = [(text, known[text]) for text in topic["texts"] if text in found]
        lines = [f"## {topic['title'] if language == 'en' else topic['title_zh']}", ""]
        head = HEADS[language]
        lines += ["| " + " | ".join(head) + " |", "| --- | --- | --- |"]
        for text, told in rows:
            cause, cure = (told.cause, told.cure) if language == "en" else (told.cause_zh, told.cure_zh)
            lines.append(f"| {_shown(text)} | {cause} | {cure} |")
        parts.append("\n".join(lines) if rows else "")
    return "\n\n".join(part for part in parts if part)


def _shown(text: str) -> str:
    escaped = (
        text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;").replace("*", "\\*").replace("_", "\\_")
    )
    return " ".join(escaped.replace("`", "").split())


@functools.cache
def topics() -> tuple[Mapping[str, Any], ...]:
    """The topics of the committed table: title, title_zh, and the texts that belong to each."""
    return tuple(
        {**topic, "texts": [text for entry in topic["messages"] for text in entry["texts"]]}
        for topic in yaml.safe_load(TABLE.read_text("utf-8"))
    )


def behind() -> dict[str, Behind]:
    """What is behind each message of the committed table."""
    return {
        text: Behind(**{name: entry[name] for name in Behind.__dataclass_fields__})
        for topic in topics()
        for entry in topic["messages"]
        for text in entry["texts"]
    }


@functools.cache
def collected() -> Mapping[str, str]:
    """Each message of the code, and the module that has it first."""
    found: dict[str, str] = {}
    trees = {path: ast.parse(path.read_text("utf-8")) for path in sorted(SOURCE.rglob("*.py"))}
    errors = _error_classes(trees.values())
    functions = {
        node.name: node for tree in trees.values() for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)
    }
    for path, tree in trees.items():
        if path.relative_to(SOURCE).as_posix() in _SENTENCES:
            found |= dict.fromkeys(map(_normal, _sentences(tree)), path.relative_to(SOURCE).as_posix())
        for node, scopes in _calls(tree):
            if node.args and _is_message(node, errors):
                for text in _texts(node.args[0], (*scopes, tree), functions):
                    shown = _normal(text)
                    if _SAYS.search(shown.replace(GAP, " ")):
                        found.setdefault(shown, path.relative_to(SOURCE).as_posix())
    return found


def _sentences(tree: ast.AST) -> Iterator[str]:
    """The texts of a module that are filled in: those with a gap and a few words."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            text = "".join(map(_part, node.values))
            if len(re.findall(r"[A-Za-z]+", text)) > 3:
                yield text


def _normal(text: str) -> str:
    filled = re.sub(r"%(?:\.\d+)?[sdrfg]|%i", GAP, text).replace("%%", "%")
    return " ".join(re.sub(rf"{GAP}(?:\s?{GAP})+", GAP, filled).split())


def _error_classes(trees: Any) -> frozenset[str]:
    """The names of AmctError and the classes that derive from it."""
    bases = {
        node.name: {ast.unparse(base).split(".")[-1] for base in node.bases}
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    known, before = {"AmctError"}, 0
    while len(known) > before:
        before = len(known)
        known |= {name for name, parents in bases.items() if parents & known}
    return frozenset(known | {"ArgumentTypeError"})  # argparse's, too


def _is_message(call: ast.Call, errors: frozenset[str]) -> bool:
    name = ast.unparse(call.func)
    if name in _WARNS or name.split(".")[-1] in errors:
        return True
    return "." in name and name.split(".")[-1] in _PARSERS and not name.startswith(("_log", "logging"))


def _calls(tree: ast.AST, scopes: tuple[ast.AST, ...] = ()) -> Iterator[tuple[ast.Call, tuple[ast.AST, ...]]]:
    """All calls below a node, with the functions around each, the innermost first."""
    for child in ast.iter_child_nodes(tree):
        inner = (child, *scopes) if isinstance(child, ast.FunctionDef) else scopes
        if isinstance(child, ast.Call):
            yield child, scopes
        yield from _calls(child, inner)


def _texts(node: ast.AST, scopes: tuple[ast.AST, ...], functions: Mapping[str, ast.FunctionDef]) -> list[str]:
    """All texts that an expression may give, with a gap for each part that is only known when it runs."""
    if isinstance(node, ast.Constant):
        return [node.value if isinstance(node.value, str) else GAP]
    if isinstance(node, ast.JoinedStr):
        return ["".join(map(_part, node.values))]
    if isinstance(node, ast.IfExp):
        return [*_texts(node.body, scopes, functions), *_texts(node.orelse, scopes, functions)]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        ends = _texts(node.right, scopes, functions)
        return [begin + end for begin in _texts(node.left, scopes, functions) for end in ends]
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mod):
        return _texts(node.left, scopes, functions)
    if isinstance(node, ast.Name):
        return _assigned(node.id, scopes, functions) or [GAP]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in functions:
        inner = functions[node.func.id]
        given = [it.value for it in ast.walk(inner) if isinstance(it, ast.Return) and it.value is not None]
        simple = [value for value in given if not isinstance(value, ast.Call)]
        return [text for value in simple for text in _texts(value, (inner,), {})] or [GAP]
    return [GAP]


def _part(part: ast.expr) -> str:
    """A part of an f-string: its text, what `words` calls an option in Python, or a gap."""
    if isinstance(part, ast.Constant):
        return str(part.value)
    call = part.value if isinstance(part, ast.FormattedValue) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in _OPTIONS and call.args:
        name, *values = [argument.value if isinstance(argument, ast.Constant) else GAP for argument in call.args]
        return "=".join(map(str, (name, *values)))
    return GAP


def _assigned(name: str, scopes: tuple[ast.AST, ...], functions: Mapping[str, ast.FunctionDef]) -> list[str]:
    """What is assigned to a name in the innermost scope that assigns to it."""
    for number, scope in enumerate(scopes):
        values = [value for node in ast.walk(scope) for target, value in _pairs(node) if target == name]
        if values:
            return [
                text
                for value in values
                if not _names(value, name)
                for text in _texts(value, scopes[number:], functions)
            ]
    return []


def _pairs(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.Assign):
        for target in node.targets:
            if isinstance(target, ast.Name):
                yield target.id, node.value
            if isinstance(target, ast.Tuple) and isinstance(node.value, ast.Tuple):
                for one, value in zip(target.elts, node.value.elts, strict=False):
                    if isinstance(one, ast.Name):
                        yield one.id, value
    if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value is not None:
        yield node.target.id, node.value


def _names(node: ast.AST, name: str) -> bool:
    return any(isinstance(inner, ast.Name) and inner.id == name for inner in ast.walk(node))
