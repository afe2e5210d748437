"""The package as others get it: a wheel and a source archive that install and run in an empty environment."""

import json
import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
STRANGERS = Path(__file__).parent / "strangers"


@pytest.fixture(scope="module")
def dist(tmp_path_factory):
    """The directory with the wheel and the source archive, as `make dist` builds them."""
    out = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out


def test_what_is_in_it(dist):
    [wheel], [archive] = dist.glob("*.whl"), dist.glob("*.tar.gz")
    names = set(zipfile.ZipFile(wheel).namelist())
    for name in (
        "py.typed",
        "text/words/words.txt",
        "report/style.css",
        "_recipes/demo.yaml",
        "run/pipeline/__init__.py",
    ):
        assert f"stepmark/{name}" in names
    assert not any(name.startswith(("tests/", "bench/")) or "__pycache__" in name for name in names)
    with tarfile.open(archive) as sources_of:
        sources = {name.partition("/")[2] for name in sources_of.getnames()}
    # All that `make` and the tests need, so both work in an unpacked archive.
    tops = ("pyproject.toml", "README.md", "CONTRIBUTING.md", "Makefile", "constraints.txt", "mkdocs.yml")
    folders = (".ci", "bench", "docs", "examples", "recipes", "src", "tests")
    files = [path for folder in folders for path in (ROOT / folder).rglob("*") if path.is_file()]
    needed = {path.relative_to(ROOT).as_posix() for path in files if "__pycache__" not in path.parts}
    assert sorted({*tops, *needed} - sources) == []


def test_it_installs_and_runs_in_an_empty_environment(dist, tmp_path):
    """The core alone: no torch, no transformers."""
    [wheel] = dist.glob("*.whl")
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "empty"], check=True)
    binaries = tmp_path / "empty" / "bin"
    install = [binaries / "pip", "install", "--quiet", "--disable-pip-version-check", wheel]
    done = subprocess.run(install, capture_output=True, text=True, env=clean)
    if done.returncode and "No matching distribution found" in done.stderr:
        pytest.skip(f"NO PACKAGE INDEX: what stepmark needs can't be installed: {done.stderr.splitlines()[-1]}")
    assert done.returncode == 0, done.stderr

    def stepmark(*arguments):
        done = subprocess.run(
            [binaries / "stepmark", *map(str, arguments)], capture_output=True, text=True, env=clean, cwd=tmp_path
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert "Turn a task with checkable answers" in stepmark("--help")
    assert "torch" in stepmark("doctor")
    assert json.loads(stepmark("run", ROOT / "recipes" / "demo.yaml", "--dry-run", "--json"))["stages"]
    recipe = {
        "name": "empty",
        "task": str(STRANGERS / "task.py"),
        "generator": {"backend": str(STRANGERS / "backend.py")},
        "sample": {"train": {"problems": 3, "n": 2}, "test": {"problems": 4, "n": 4}},
        "label": {"name": "monte_carlo", "options": {"rollouts": 2}},
        "verifiers": {"recompute": {"kind": str(STRANGERS / "verifier.py")}},
        "evaluate": {"n": [1, 4]},
        "workers": 1,
    }
    (tmp_path / "empty.yaml").write_text(json.dumps(recipe))
    assert "recompute" in stepmark("run", "empty.yaml")
    assert "recompute" in (tmp_path / "runs/empty/report.html").read_text()
    code = "import stepmark, importlib.util as u; assert not any(map(u.find_spec, ('torch', 'transformers')))"
    subprocess.run([binaries / "python", "-c", code], check=True, env=clean, cwd=tmp_path)
