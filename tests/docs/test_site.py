"""The site builds without a warning, and a newcomer finds on it whatever there is to find.

The site has an environment of its own, `.venv-docs`, which `make docs` makes (STEPMARK_DOCS names another one).
"""

import fcntl
import os
import re
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer

import stepmark
from stepmark.cli import app
from stepmark.plugins import registry
from stepmark.run.recipe import Recipe

ROOT = Path(__file__).parents[2]


class Page(HTMLParser):
    """What a page shows and points to."""

    def __init__(self, path):
        super().__init__()
        self.ids, self.links, self.loads, self.words, self.hidden = set(), set(), set(), [], 0
        self.feed(path.read_text(encoding="utf-8"))
        self.text = " ".join(" ".join(self.words).split())

    def handle_starttag(self, tag, attributes):
        given = dict(attributes)
        self.ids |= {given["id"]} if given.get("id") else set()
        if tag == "a" and given.get("href"):
            self.links.add(given["href"])
        elif tag in ("script", "img", "iframe", "link"):
            self.loads |= {given.get(k) for k in ("src", "href") if given.get(k)}
        self.hidden += tag in ("script", "style")

    def handle_endtag(self, tag):
        self.hidden -= tag in ("script", "style")

    def handle_data(self, data):
        if not self.hidden:
            self.words.append(data)


@pytest.fixture(scope="session")
def site(tmp_path_factory):
    """The directory of the site, built strictly, once for all workers. Skips where its environment is missing."""
    mkdocs = Path(os.environ.get("STEPMARK_DOCS") or ROOT / ".venv-docs") / "bin" / "mkdocs"
    if not mkdocs.exists():
        pytest.skip(f"there is no {mkdocs}: `make docs` installs it, or STEPMARK_DOCS names an environment that has it")
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    with (shared / "site.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (shared / "site" / "index.html").exists():
            env = os.environ | {"NO_MKDOCS_2_WARNING": "1", "PYTHONPATH": str(ROOT / "src")}
            # A proxy that nobody listens at: what asks the network for something fails.
            env |= dict.fromkeys(("http_proxy", "https_proxy"), "http://127.0.0.1:9")
            build = [mkdocs, "build", "--strict", "--site-dir", shared / "site"]
            done = subprocess.run(build, cwd=ROOT, env=env, capture_output=True, text=True)
            assert (done.returncode, "WARNING" in done.stderr) == (0, False), done.stderr
    return shared / "site"


@pytest.fixture(scope="session")
def pages(site):
    return {str(path.relative_to(site)): Page(path) for path in site.rglob("*.html")}


def test_nothing_is_loaded_from_elsewhere(pages):
    assert {x for page in pages.values() for x in page.loads if re.match(r"(https?:)?//", x)} == set()


def test_links_lead_somewhere(pages):
    missing = set()
    for name, page in pages.items():
        if name == "404.html":
            continue
        for link in page.links:
            where, _, part = link.partition("#")
            if re.match(r"(https?|mailto):", where):
                continue
            other = os.path.normpath(os.path.join(os.path.dirname(name), where)) if where else name
            if other.endswith(".html") and (other not in pages or (part and part not in pages[other].ids)):
                missing.add((name, link))
    assert missing == set()


def test_every_page_is_in_the_navigation(pages):
    home = pages["index.html"]
    assert {name for name in pages if name not in ("404.html", "index.html")} <= home.links


def test_every_command_is_found_with_its_options(pages):
    page, group = pages["reference/commands.html"], typer.main.get_command(app)
    for name, command in group.commands.items():
        assert f"stepmark-{name}" in page.ids
        for parameter in command.params:
            said = parameter.opts[0] if parameter.opts[0].startswith("-") else parameter.metavar
            assert said in page.text, f"{name} {said}"


def keys(schema, defs, path=""):
    """The dotted name of each key of a JSON schema; NAME where a name of one's own stands."""
    for each in (schema, *schema.get("anyOf", ()), *schema.get("allOf", ())):
        if "$ref" in each:
            yield from keys(defs[each["$ref"].rpartition("/")[2]], defs, path)
        for name, inner in each.get("properties", {}).items():
            yield f"{path}{name}"
            yield from keys(inner, defs, f"{path}{name}.")
        for inner in (each.get("additionalProperties"), *each.get("patternProperties", {}).values()):
            if isinstance(inner, dict):
                yield from keys(inner, defs, f"{path}NAME.")


def test_every_recipe_key_is_found_by_its_whole_name(pages):
    page, schema = pages["reference/recipe.html"], Recipe.model_json_schema()
    found = set(keys(schema, schema["$defs"]))
    assert {"seed", "sample.test.n", "verifiers.NAME.train.lr", "reinforce.policies.NAME.settings.kl"} <= found
    assert {key for key in found if f" {key} " not in f" {page.text} "} == set()


def test_every_plug_in_is_found_with_its_options(pages):
    page = pages["reference/plugins.html"]
    for role in registry.ROLES:
        for name in registry.names(role):
            assert f"{role}-{name}" in page.ids
            assert [x for x in registry.options(role, name) if f" {x} " not in page.text] == []


def test_every_name_of_the_package_is_found(pages):
    page = pages["reference/python.html"]
    described = {x for p in pages.values() for x in p.ids}
    for name in stepmark.__all__:
        assert f" {name} " in page.text
        assert any(re.fullmatch(rf"stepmark\.[\w.]*\b{name}", x) for x in described), f"{name} is described nowhere"
