"""The built site: it shows the version, its reference has every public name, and no browser loads
anything from elsewhere."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

import pytest

import jobsync_async
from jobsync_async import Job
from tests.documents.blocks import ROOT

if not (ROOT / "mkdocs.yml").exists() or not (ROOT / "jobsync_async").is_dir():
    pytest.skip(
        "the site's source is not here: an installed wheel is tested", allow_module_level=True
    )
pytest.importorskip("zensical")

# What the theme's script can load, and for what: none of it is on a page, as the tests below see.
HOSTS_IN_SCRIPTS = {
    # Mermaid; GLightbox; Ace and Pyodide for code that runs in the page; a polyfill for browsers
    # before 2020
    "unpkg.com",
    "cdn.jsdelivr.net",  # Pyodide
    "api.github.com",  # stars and releases of the repository
    "www.w3.org",  # names of namespaces, which nobody loads
}
LOADS = {"src", "srcset", "poster", "data", "background", "formaction", "xlink:href"}
WOULD_LOAD = re.compile(
    r"class=\".*(mermaid|glightbox|pyodide)|data-md-exec|data-md-component=\"source\""
)
ELSEWHERE = re.compile(r"(?:[a-z][a-z0-9+.-]*:)?//", re.IGNORECASE)


def build(folder: Path, *more: str) -> Path:
    """Build the site in a copy, with more lines of settings."""
    for name in ("docs", "jobsync_async"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    settings = (ROOT / "mkdocs.yml").read_text("utf-8")
    (folder / "mkdocs.yml").write_text("\n".join([settings, *more]), "utf-8")
    command = [sys.executable, "-m", "zensical", "build", "--strict", "--clean"]
    done = subprocess.run(
        command, cwd=folder, capture_output=True, text=True, timeout=100, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "site"


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    return build(tmp_path_factory.mktemp("site"))


class Page(HTMLParser):
    """What a browser would load for a page, and the policy that it is given."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loaded: list[str] = []
        self.policy = ""
        self.loaded_before_policy: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.attributes += [f'{name}="{value}"' for name, value in given.items()]
        found = [value for name, value in given.items() if name in LOADS]
        if tag in ("link", "use", "image", "base", "feimage"):
            found += [value for name, value in given.items() if name == "href"]
        found += _in_css(given.get("style", ""))
        if given.get("http-equiv", "").lower() == "content-security-policy":
            self.policy = given["content"]
            self.loaded_before_policy = [*self.loaded]
        self.loaded += found

    def handle_data(self, data: str) -> None:
        if self.lasttag == "style":
            self.loaded += _in_css(data)


def _in_css(text: str) -> list[str]:
    imports = re.findall(r"@import\s+[\"']([^\"']+)", text)
    return imports + [address.strip("\"' ") for address in re.findall(r"url\(([^)]*)\)", text)]


def pages(site: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(site.rglob("*.html")):
        yield path, path.read_text("utf-8")


def test_every_page_shows_the_version(site):
    for path, text in pages(site):
        assert f"jobsync_async {jobsync_async.__version__} " in text, path.relative_to(site)


def test_no_page_loads_anything_from_another_host(site):
    for path, text in pages(site):
        page = Page(text)
        assert page.loaded, "the parser found nothing at all"
        outside = [address for address in page.loaded if ELSEWHERE.match(address)]
        assert not outside, path.relative_to(site)


def test_no_stylesheet_and_no_picture_loads_anything_from_another_host(site):
    files = [path for path in site.rglob("*") if path.suffix in (".css", ".svg")]
    assert {path.suffix for path in files} == {".css", ".svg"}
    for path in files:
        text = path.read_text("utf-8")
        outside = [address for address in _in_css(text) if ELSEWHERE.match(address)]
        outside += (
            re.findall(r"(?:href|src)=\"([a-z]*:?//[^\"]+)", text) if path.suffix == ".svg" else []
        )
        assert not outside, path.relative_to(site)


def test_scripts_know_no_other_hosts_and_pages_have_nothing_for_which_they_would_load(site):
    scripts = [path.read_text("utf-8") for path in site.rglob("*.js")]
    assert scripts
    hosts = {host for text in scripts for host in re.findall(r"https?://([\w.-]+)", text)}
    assert hosts == HOSTS_IN_SCRIPTS, (
        "a new one has to be looked at; one that is gone leaves the list"
    )
    for path, text in pages(site):
        assert not list(filter(WOULD_LOAD.match, Page(text).attributes)), path.relative_to(site)


def test_browsers_are_told_to_load_nothing_from_elsewhere(site):
    for path, text in pages(site):
        page = Page(text)
        rules = dict(rule.split(maxsplit=1) for rule in page.policy.split("; "))
        assert rules["default-src"] == "'self'", path.relative_to(site)
        sources = {source for rule in rules.values() for source in rule.split()}
        assert sources == {"'self'", "'unsafe-inline'", "data:"}
        assert not [name for name in page.loaded_before_policy if name.endswith((".js", ".css"))]


def test_the_reference_has_every_public_name_and_every_method_of_job(site):
    anchors = [
        anchor
        for path in sorted((site / "reference").rglob("index.html"))
        for anchor in re.findall(r"id=\"(jobsync_async\.[\w.]+)\"", path.read_text("utf-8"))
    ]
    assert len(anchors) == len(set(anchors)), "a name has two places"
    for name in jobsync_async.__all__:
        if name == "__version__":
            assert "jobsync_async.__version__" in (site / "reference" / "index.html").read_text(
                "utf-8"
            )
        else:
            assert {f"jobsync_async.{name}", f"jobsync_async.errors.{name}"} & set(anchors), name
    methods = [name for name in dir(Job) if not name.startswith("_")]
    assert "run_batch" in methods
    assert [name for name in methods if f"jobsync_async.Job.{name}" not in anchors] == []


def test_every_page_of_the_reference_has_an_example():
    for page in sorted((ROOT / "docs" / "reference").glob("*.md")):
        assert "```python" in page.read_text("utf-8"), page.name


def test_diagrams_are_pictures_already(site):
    drawn = {path.parent.name: text.count('<svg class="diagram"') for path, text in pages(site)}
    for page in (ROOT / "docs").glob("*.md"):
        assert drawn.get(page.stem, 0) == page.read_text("utf-8").count("```mermaid"), page.name
    assert drawn["protocol"] > 1


def test_the_repository_is_shown_by_one_line_and_asks_nobody(tmp_path):
    site = build(tmp_path, "repo_url: https://github.com/somebody/jobsync_async")
    text = (site / "usage" / "index.html").read_text("utf-8")
    assert 'href="https://github.com/somebody/jobsync_async"' in text
    assert not list(filter(WOULD_LOAD.match, Page(text).attributes))


def test_a_diagram_is_drawn_or_refused():
    from pymdownx.superfences import SuperFencesException

    from docs.pictures.diagrams import fence

    def draw(*lines: str) -> str:
        return fence("\n    ".join(lines), "mermaid", "mermaid", {}, None)

    messages = ["A->>B: 1 < 2<br/>next", "B-->>A: yes", "Note over A,B: end"]
    drawn = draw("sequenceDiagram", "participant A as A (joins)", "participant B", *messages)
    assert drawn.count("<text") == 2 + 2 + 1 + 1
    assert "1 &lt; 2" in drawn
    assert 'class="answer"' in drawn
    titles = ["A: first", "B: second", "C: third", "[*] --> A"]
    drawn = draw("stateDiagram-v2", *titles, "A --> B: on", "B --> A: back", "A --> C: far, far")
    assert drawn.count("<text") == 3 + 1 + 1 + 2
    assert drawn.count('class="head"') == 5
    for wrong in (
        ["graph TD", "A-->B"],
        ["sequenceDiagram", "participant A", "loop daily"],
        ["sequenceDiagram", "A->>B: hello"],
        ["stateDiagram-v2", "A --> B: on"],
        ["stateDiagram-v2", "A: one", "direction LR"],
    ):
        with pytest.raises(SuperFencesException):
            draw(*wrong)
