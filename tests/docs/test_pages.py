"""Every block of README.md and of the pages in docs/ is run as a reader would, or, where it can't be, is checked.

The tutorial is run once. The other pages go on from what it made, as they tell their readers.
"""

import fcntl
import re
import shutil

import pages
import pytest

import stepmark

TUTORIAL = pages.ROOT / "docs" / "tutorial.md"
OTHERS = [p for p in pages.PAGES if p != TUTORIAL]


@pytest.fixture(scope="session")
def after_tutorial(tmp_path_factory):
    """The directory of a reader who has done the tutorial. Read-only. One for all workers of a session."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if base.name.startswith("popen-") else base
    place, done = shared / "tutorial", shared / "tutorial.done"
    with (shared / "tutorial.lock").open("w") as lock, pytest.MonkeyPatch.context() as patch:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            pages.run_page(TUTORIAL, place, patch)
            done.touch()
    return place


def files_named(page):
    """Paths of the tutorial's run that a page names."""
    return set(re.findall(r"`(runs/[\w./-]+)`", page.read_text(encoding="utf-8")))


def test_the_tutorial(after_tutorial):
    assert (after_tutorial / "runs" / "first" / "report.html").is_file()
    assert [x for x in files_named(TUTORIAL) if not (after_tutorial / x).exists()] == []
    # What it loads itself are the run's own problems: other settings would give others the same ids.
    task = stepmark.load_task(str(after_tutorial / "small.py"))
    for split in ("train", "test"):
        own = list(
            stepmark.Records(after_tutorial / "runs" / "first" / "problems" / f"{split}.jsonl", stepmark.Problem)
        )
        assert list(task.load(split, len(own)).problems) == own


@pytest.mark.parametrize("page", OTHERS, ids=lambda p: str(p.relative_to(pages.ROOT)))
def test_a_page(page, request, tmp_path, monkeypatch):
    place = tmp_path / "reader"
    if any(not b.parsed_only and not b.indented and b.kind != "yaml" for b in pages.blocks(page)):
        shutil.copytree(request.getfixturevalue("after_tutorial"), place)
    place.mkdir(exist_ok=True)
    for folder in ("recipes", "examples"):
        if not (place / folder).exists():
            shutil.copytree(pages.ROOT / folder, place / folder)
    pages.run_page(page, place, monkeypatch)


@pytest.mark.parametrize(
    ("kind", "text", "said"),
    [
        ("python", "from stepmark import lod_task", "lod_task"),
        ("python", "import stepmark\nstepmark.nothing", "nothing"),
        ("python", "from stepmark.integrations import rewards\nrewards.trl('x', grade='numeric')", "takes no"),
        ("yaml", "sample: {tset: {n: 4}}", "Did you mean 'test'"),
        ("yaml", "name: x\nverifiers: {a: {kind: pmr}}", "Did you mean 'prm'"),
        ("bash", "stepmark smaple --n 3", "no command"),
        ("bash", "stepmark sample --m 3 --out x", "--m"),
        ("bash", "stepmark run recipes/demo.yaml sed=3", "Did you mean 'seed'"),
        ("bash", "make tests", "no target"),
        ("bash", "pip install 'stepmark[training]'", "no extra"),
        ("bash", "rm -r runs", "not among"),
        ("jsonl", '{"a": 1}\n{"a" 2}', "delimiter"),
        ("rust", "fn main() {}", "no kind"),
    ],
)
def test_what_is_wrong_with_a_block_is_found(tmp_path, kind, text, said):
    block = pages.Block("page", 1, kind, "", text, parsed_only=True)
    with pytest.raises(Exception, match=re.escape(said)):
        pages.check(block, tmp_path)


def test_a_block_that_fails_fails_its_page(tmp_path, monkeypatch):
    for text, said in (("```python\n1 / 0\n```", "ZeroDivisionError"), ("```bash\nstepmark rank x\n```", "status 1")):
        page = tmp_path / "page.md"
        page.write_text(text)
        monkeypatch.setattr(pages, "ROOT", tmp_path)
        with pytest.raises(AssertionError, match=said):
            pages.run_page(page, tmp_path, monkeypatch)
