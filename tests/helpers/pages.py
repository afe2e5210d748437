"""Pages of documentation as tests read them: their blocks, and what becomes of each.

A block is run, or, under the line `<!-- docs: parsed only -->`, checked without being run. There is no third kind, but
for blocks that show what a program prints (`text`). A block with `title="mine.yaml"` is that file.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import json
import re
import runpy
import shlex
import typing
from dataclasses import dataclass
from pathlib import Path

import typer
import yaml
from markdown_it import MarkdownIt
from typer.testing import CliRunner

import stepmark
from stepmark.cli import app
from stepmark.run import recipe

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.parent.name != "results")]
MARKER = "<!-- docs: parsed only -->"
SHELL, DATA = ("bash", "console"), ("json", "jsonl")
KINDS = ("python", "yaml", "text", *SHELL, *DATA)
OTHERS = ("cd", "git", "make", "pip", "python", "python3", "vllm")  # programs that pages name, and tests don't run
# What a part of a recipe is put on.
MINIMAL = {
    "name": "minimal",
    "task": "arithmetic",
    "generator": {"path": "my-model"},
    "verifiers": {"orm": {"kind": "orm"}, "prm": {"kind": "prm"}},
}


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int  # 1-based, of its opening fence
    kind: str  # what follows the fence
    title: str  # the file that it is; "" if none
    text: str
    parsed_only: bool
    indented: bool = False  # four spaces instead of fences: only its commands are looked at, and not run

    def __str__(self):
        return f"{self.page}:{self.line}"


def blocks(page):
    """The blocks of a page, in order."""
    name, marked = str(page.relative_to(ROOT)), False
    for token in MarkdownIt("commonmark").parse(page.read_text(encoding="utf-8")):
        if token.type in ("fence", "code_block"):
            kind, _, rest = token.info.strip().partition(" ")
            title = re.fullmatch(r'title="([^"]+)"', rest)
            assert title or not rest, f"{name}:{token.map[0] + 1}: what is {rest!r}?"
            indented = token.type == "code_block"
            yield Block(name, token.map[0] + 1, kind, title[1] if title else "", token.content, marked, indented)
        marked = token.type == "html_block" and token.content.strip() == MARKER
        assert marked or token.type != "html_block" or "docs:" not in token.content, f"{name}: {token.content}"


def commands(text):
    """The command lines of a shell block, each as its words."""
    for line in text.replace("\\\n", " ").split("\n"):
        if words := shlex.split(line.removeprefix("$ "), comments=True):
            yield words


# ---- run ----


def run_page(page, place, monkeypatch):
    """Runs a page's blocks in order, in the directory `place`, Python in one namespace. Checks the others."""
    monkeypatch.chdir(place)
    names = {"__name__": "page"}
    for block in blocks(page):
        try:
            if block.kind in KINDS and not block.parsed_only and not block.indented:
                _run(block, names)
            else:
                check(block, place)
        except Exception as e:
            raise AssertionError(f"{block}: {type(e).__name__}: {e}") from e


def _run(block, names):
    if block.title:
        path = Path(block.title)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
    if block.kind == "python":
        if block.title:
            runpy.run_path(block.title)
        else:
            exec(compile(block.text, str(block), "exec"), names)  # noqa: S102 - it is our own page
    elif block.kind in SHELL:
        for words in commands(block.text):
            if words[0] == "stepmark":
                done = CliRunner().invoke(app, words[1:])
                assert done.exit_code == 0, f"{shlex.join(words)} ends with status {done.exit_code}:\n{done.output}"
            else:
                check_program(words)
    else:
        check(block, Path())


# ---- check ----


def check(block, place):
    """What can be found wrong with a block without running it."""
    if block.indented:
        for line in block.text.split("\n"):
            if line.startswith("stepmark "):
                for words in commands(line):
                    check_command(words, place)
        return
    assert block.kind in KINDS, f"{block.kind!r} is no kind of block; there are {', '.join(KINDS)}"
    if block.kind == "python":
        check_python(block.text)
    elif block.kind == "yaml":
        check_recipe(block.text, block.title)
    elif block.kind in SHELL:
        for words in commands(block.text):
            if words[0] == "stepmark":
                check_command(words, place)
            else:
                check_program(words)
    elif block.kind in DATA:
        for row in [block.text] if block.kind == "json" else block.text.splitlines():
            json.loads(row)


def check_recipe(text, title=""):
    """A whole recipe, which has a name or is a file, or a part of one."""
    raw = yaml.safe_load(text)
    whole = {"name": "page"} | raw if title or "name" in raw else _merged(MINIMAL, raw)
    recipe.parse(whole, title or "part")


def _merged(below, above):
    both = isinstance(below, dict) and isinstance(above, dict)
    return below | {k: _merged(below.get(k), v) for k, v in above.items()} if both else above


def check_command(words, place):
    """The command is there and takes these arguments; changes to a recipe that is there are right."""
    words = words[: words.index("|")] if "|" in words else words
    if len(words) == 2 and words[1] in ("--help", "--version"):
        return
    group = typer.main.get_command(app)
    named = [name for word in words[1:2] for name in word.split("|")]
    assert named and set(named) <= set(group.commands), f"no command {' '.join(named)!r}"
    if words[2:] == ["--help"]:
        return
    command = group.commands[named[0]]
    given = command.make_context(named[0], words[2:], parent=typer.Context(group)).params
    if "recipe" in given and not given.get("optimal"):
        found = [x for x in (place / given["recipe"], ROOT / given["recipe"]) if x.is_file()]
        if found:
            recipe.load(found[0], given["changes"] or [])


def check_program(words):
    """Another program's command: one that we know of, with targets and extras that exist."""
    words = [w for i, w in enumerate(words) if "=" not in w or any("=" not in x for x in words[: i + 1])]
    assert words[0] in OTHERS, f"{words[0]!r} is not among {', '.join(OTHERS)}"
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {w for w in words[1:] if "=" not in w} <= set(targets), f"make has no target in {words}"
    for extras in re.findall(r"stepmark\[([\w,]+)\]", " ".join(words)):
        there = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
        assert set(extras.split(",")) <= set(there), f"no extra in {extras}"


def check_python(text):
    """It compiles, what it imports from Stepmark is there, and so are the attributes and parameters that it uses."""
    tree = ast.parse(text)
    known = {"stepmark": stepmark}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "stepmark":
                    module = importlib.import_module(name.name)
                    known[name.asname or "stepmark"] = module if name.asname else stepmark
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stepmark":
            home = importlib.import_module(node.module)
            for name in node.names:
                known[name.asname or name.name] = _member(home, name.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (called := _found(node.func, known)) is not None:
            taken = _parameters(called)
            given = {k.arg for k in node.keywords if k.arg}
            assert taken is None or given <= taken, f"{ast.unparse(node.func)} takes no {given - (taken or set())}"
        elif isinstance(node, ast.Attribute):
            _found(node, known)


def _parameters(called):
    """The names of what a callable takes; None where it takes any."""
    names = set()
    for p in inspect.signature(called).parameters.values():
        if p.kind is p.VAR_KEYWORD:
            unpacked = typing.get_args(typing.get_type_hints(called).get(p.name))  # of a TypedDict
            if not unpacked:
                return None
            names |= set(typing.get_type_hints(unpacked[0]))
        names.add(p.name)
    return names


def _member(home, name):
    if hasattr(home, name):
        return getattr(home, name)
    return importlib.import_module(f"{home.__name__}.{name}")


def _found(node, known):
    """The object of Stepmark that an expression such as `rewards.trl` stands for; None if it is none."""
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.Attribute):
        home = _found(node.value, known)
        return getattr(home, node.attr) if inspect.ismodule(home) or inspect.isclass(home) else None
    return None
