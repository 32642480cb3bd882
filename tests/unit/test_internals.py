"""The map (docs/internals.md): every name on it is where it says, its parts are complete, and ten
questions find their answers.

A *reference* is a path in backticks and the names in backticks that follow it, up to the next path
or the end of the cell or paragraph. Paths begin inside the package, except those of tests and
documents and of files beside them.
"""

from __future__ import annotations

import ast
import re
import shutil
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

from docs.pictures import rooms

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "jobsync_async"
PAGE = (ROOT / "docs" / "internals.md").read_text("utf-8")

pytestmark = pytest.mark.skipif(
    not PACKAGE.is_dir(), reason="the map is of the sources, and here is an installed package alone"
)

PARTS = ["files", "statements", "loop", "test"]
MOST_WORDS = 60
QUERIES = "postgres/queries.sql"


class Question(NamedTuple):
    """A question, and its answer: under which headings, and which names in which files."""

    text: str
    headings: tuple[str, ...]
    answer: dict[str, tuple[str, ...]]


QUESTIONS = [
    Question(
        "Where is a death decided?",
        ("Heartbeat and lease", "Known death of a process"),
        {
            "core/lease.py": ("BeatWatch.stalled",),
            "core/neighbours.py": ("dead_workers",),
            QUERIES: ("expire_nodes", "delete_dead"),
        },
    ),
    Question(
        "What happens when the lease ends?",
        ("Heartbeat and lease",),
        {"tasks/worker.py": ("Worker.stop_acting",)},
    ),
    Question(
        "Which statement gives a token to its next owner?",
        ("Hand-off", "Plan and distribution"),
        {QUERIES: ("acknowledge", "assign_tokens")},
    ),
    Question(
        "What makes a rebalance start?",
        ("Plan and distribution",),
        {
            "core/leader_state.py": ("LeaderState.rebalance_reason",),
            "core/takeover.py": ("Pacing",),
        },
    ),
    Question("Where are two wishes for one pin compared?", ("Pins",), {"core/pins.py": ("admit",)}),
    Question(
        "What does a claim do when its token is revoked?",
        ("Claim",),
        {"work/holding.py": ("Holding.revoked",), "work/claims.py": ("Claim.leaving",)},
    ),
    Question(
        "Where is a restored database recognised?",
        ("Failover of the server and restored databases",),
        {"core/server_history.py": ("ServerReading.adoptable",), QUERIES: ("heartbeat",)},
    ),
    Question(
        "How does a follower hear of a change?",
        ("Push and poll",),
        {"postgres/listener.py": ("Listener",), "tasks/rebalance.py": ("follow_changes",)},
    ),
    Question(
        "Where does a batch learn that it is complete?",
        ("Batch",),
        {"work/others.py": ("Others.run",), QUERIES: ("read_parts",)},
    ),
    Question(
        "Which test shows that a stopped leader writes nothing?",
        ("Leader and takeover",),
        {
            "tests/integration/interleavings/test_leaders.py": (
                "test_a_stopped_leader_that_comes_back_writes_nothing",
            )
        },
    ),
]

# -- reading the page ------------------------------------------------------------------------------


def section(page: str, heading: str, level: int = 2) -> str:
    """What stands under a heading, up to the next one that is as high."""
    found = re.search(
        rf"^{'#' * level} {re.escape(heading)}\n(.*?)(?=^#{{2,{level}}} |\Z)",
        page,
        re.MULTILINE | re.DOTALL,
    )
    return "" if found is None else found[1]


def concepts(page: str) -> dict[str, str]:
    """The text of each concept, by its heading."""
    whole = section(page, "Concepts")
    return {
        heading: section(page, heading, 3)
        for heading in re.findall(r"^### (.+)$", whole, re.MULTILINE)
    }


def table(text: str) -> list[list[str]]:
    """The cells of the rows of the tables in a text, without their headings."""
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    ]
    return [
        row
        for number, row in enumerate(rows)
        if not set(row[0]) <= {"-"} and set(rows[min(number + 1, len(rows) - 1)][0]) != {"-"}
    ]


def prose(text: str) -> str:
    """A text without its tables."""
    return "\n".join(line for line in text.splitlines() if not line.startswith("|"))


def blocks(page: str) -> Iterator[str]:
    """Cells and paragraphs: a path holds for the names after it up to the end of one."""
    for row in table(page):
        yield from row
    yield from re.split(
        r"\n\s*\n", re.sub(r"^```.*?^```$", "", prose(page), flags=re.MULTILINE | re.DOTALL)
    )


def references(block: str) -> list[tuple[str, str | None]]:
    """Paths, and names with the path before them; a path alone comes with None. Names before any
    path are left out."""
    found: list[tuple[str, str | None]] = []
    path = None
    for text in re.findall(r"`([^`]+)`", block):
        if is_path(text):
            path = text
            found.append((path, None))
        elif path is not None and re.fullmatch(r"\w+(\.\w+)*", text):
            found.append((path, text))
    return found


def is_path(text: str) -> bool:
    """Whether it is the path of a file or folder."""
    return re.fullmatch(r"[\w./-]+(/|\.(py|sql|md|toml|yml|json|pml))", text) is not None


# -- comparing it with the files -------------------------------------------------------------------


def place(path: str, root: Path) -> Path:
    """Where the file of a path on the page is."""
    beside = path.startswith(("tests/", "docs/", "examples/", "benchmarks/")) or path in (
        "pyproject.toml",
        "CONTRIBUTING.md",
    )
    return root / path if beside else root / "jobsync_async" / path


def names(file: Path) -> set[str]:
    """The names that a file defines: those of a class with its name before them, too; of SQL, its
    statements."""
    return _names(file, file.stat().st_mtime_ns)


@cache
def _names(file: Path, _: int) -> set[str]:
    text = file.read_text("utf-8")
    if file.suffix == ".sql":
        return set(re.findall(r"^-- name: (\w+)$", text, re.MULTILINE))
    return set(defined(ast.parse(text))) if file.suffix == ".py" else set(re.findall(r"\w+", text))


def defined(tree: ast.Module | ast.ClassDef, before: str = "") -> Iterator[str]:
    """The names that a module or class binds by definitions and assignments."""
    for node in tree.body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            yield before + node.name
            if isinstance(node, ast.ClassDef):
                yield from defined(node, f"{before}{node.name}.")
        elif isinstance(node, ast.Assign):
            yield from (
                before + target.id for target in node.targets if isinstance(target, ast.Name)
            )
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            yield before + node.target.id


def problems(page: str, root: Path) -> list[str]:
    """What the page names and is not where it says."""
    found = []
    for block in blocks(page):
        for path, name in references(block):
            file = place(path, root)
            if not file.exists():
                found.append(f"{path} is not there")
            elif name is not None and (file.is_dir() or name not in names(file)):
                found.append(f"{path} has no {name}")
    return found


def unanswered(question: Question, page: str) -> list[str]:
    """What of an answer does not stand on the page: in its row, and under its headings."""
    answers = {row[0]: row[1:] for row in table(section(page, "Ten questions"))}
    if question.text not in answers:
        return [f"the page does not ask: {question.text}"]
    answer, more = answers[question.text]
    told = concepts(page)
    under = {
        reference
        for heading in question.headings
        for block in blocks(told.get(heading, ""))
        for reference in references(block)
    }
    missing = []
    for path, wanted in question.answer.items():
        for name in wanted:
            missing += [f"its row lacks {name}"] * ((path, name) not in references(answer))
            missing += [f"its headings lack {name}"] * ((path, name) not in under)
    anchors = [heading.lower().replace(" ", "-") for heading in question.headings]
    missing += [
        f"it does not lead to #{anchor}" for anchor in anchors if f"(#{anchor})" not in more
    ]
    return missing


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """A copy of what the page speaks of, in which something may be moved and is moved back."""
    to: Path = tmp_path_factory.mktemp("house")
    for name in ("jobsync_async", "tests", "docs"):
        shutil.copytree(ROOT / name, to / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "CONTRIBUTING.md"):
        shutil.copy(ROOT / name, to / name)
    return to


# -- the tests -------------------------------------------------------------------------------------


def test_every_name_on_the_page_is_where_it_says():
    assert len([name for block in blocks(PAGE) for _, name in references(block) if name]) > 150
    assert problems(PAGE, ROOT) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`core/nothing.py`", "core/nothing.py is not there"),
        ("`core/pins.py`: `admit`, `refuse`", "core/pins.py has no refuse"),
        ("`core/lease.py`: `BeatWatch.admit`", "core/lease.py has no BeatWatch.admit"),
        ("`core/lease.py`: `Lease`; `core/pins.py`: `Lease`", "core/pins.py has no Lease"),
        (
            "`postgres/queries.sql`: `heartbeat`, `skip_a_beat`",
            "postgres/queries.sql has no skip_a_beat",
        ),
        (
            "| `tests/unit/test_pins.py`: `test_nothing` |",
            "tests/unit/test_pins.py has no test_nothing",
        ),
        ("the folder `attic/`", "attic/ is not there"),
    ],
)
def test_a_name_that_is_elsewhere_is_missed(text, problem):
    assert problems(text, ROOT) == [problem]


def test_every_concept_has_its_parts_and_few_words():
    told = concepts(PAGE)
    assert len(told) == 23
    for heading, text in told.items():
        words = prose(text).split()
        assert 20 < len(words) <= MOST_WORDS, f"{heading}: {len(words)} words"
        rows = dict(table(text))
        assert list(rows) == PARTS, heading
        for part, cell in rows.items():
            assert any(name for _, name in references(cell)), f"{heading}: {part} names nothing"
        assert all(re.search(r"\.(py|sql)$", path) for path, _ in references(rows["files"])), (
            heading
        )
        assert any(path.endswith(".sql") for path, _ in references(rows["statements"])), heading
        tests = [(path, name) for path, name in references(rows["test"]) if name]
        assert [path.startswith("tests/") and name.startswith("test_") for path, name in tests] == [
            True
        ], heading


def test_every_room_has_its_line():
    lines = dict(table(section(PAGE, "Rooms")))
    folders = {f"`{path.name}/`" for path in PACKAGE.iterdir() if (path / "__init__.py").exists()}
    assert set(lines) == folders | {"top level"}
    assert all(len(line.split()) > 4 for line in lines.values())
    modules = {path.name for path in PACKAGE.glob("*.py")}
    assert modules == {path for path, _ in references(lines["top level"])}


def test_the_rooms_are_listed_in_the_order_of_their_layers():
    order = [name for layer in rooms.layers() for name in layer if (PACKAGE / name).is_dir()]
    listed = [row[0].strip("`/") for row in table(section(PAGE, "Rooms")) if row[0] != "top level"]
    assert sorted(listed) == sorted(order)
    layer_of = {name: number for number, layer in enumerate(rooms.layers()) for name in layer}
    assert [layer_of[name] for name in listed] == sorted(layer_of[name] for name in listed)


def test_every_room_says_what_it_is_and_every_rule_of_the_core_what_always_holds():
    for room in PACKAGE.iterdir():
        if (room / "__init__.py").exists():
            assert ast.get_docstring(ast.parse((room / "__init__.py").read_text("utf-8"))), (
                room.name
            )
    for module in sorted((PACKAGE / "core").glob("[!_]*.py")):
        paragraphs = (ast.get_docstring(ast.parse(module.read_text("utf-8"))) or "").split("\n\n")
        assert any(paragraph.startswith("* ") for paragraph in paragraphs[:3]), module.name


def test_the_picture_of_the_rooms_is_what_the_imports_say():
    made = rooms.draw()
    assert made == (ROOT / "docs" / "figures" / "rooms.svg").read_text("utf-8"), (
        "run `python -m docs.pictures rooms`"
    )
    assert "figures/rooms.svg" in PAGE
    assert set(re.findall(r"https?://[^\s\"')]+", made)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"@import|url\(|<image|<script|href", made)
    assert "prefers-color-scheme: dark" in made


def test_an_import_that_comes_anew_changes_the_picture(copy):
    assert rooms.draw(copy) == rooms.draw()
    file = copy / "jobsync_async" / "exporters" / "catalogue.py"
    text = file.read_text("utf-8")
    file.write_text(
        text + "\n\ndef late() -> None:\n    from jobsync_async.host.clock import lease_clock\n",
        "utf-8",
    )
    assert rooms.draw(copy) != rooms.draw()
    file.write_text(text, "utf-8")


def test_the_ten_questions_are_those_on_the_page():
    assert len(QUESTIONS) == 10
    assert [row[0] for row in table(section(PAGE, "Ten questions"))] == [
        question.text for question in QUESTIONS
    ]


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_a_question_finds_its_answer(question):
    assert unanswered(question, PAGE) == []
    for path, wanted in question.answer.items():
        assert set(wanted) <= names(place(path, ROOT)), path


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_an_answer_whose_file_has_moved_is_missed(question, copy):
    for path in question.answer:
        file = place(path, copy)
        moved = file.rename(file.with_name(f"moved_{file.name}"))
        assert set(problems(PAGE, copy)) == {f"{path} is not there"}
        moved.rename(file)
    assert problems(PAGE, copy) == []


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_an_answer_whose_name_has_changed_is_missed(question, copy):
    for path, wanted in question.answer.items():
        file = place(path, copy)
        text = file.read_text("utf-8")
        for name in wanted:
            last = name.rpartition(".")[2]
            file.write_text(
                re.sub(rf"(\bdef |\bclass |-- name: ){last}\b", r"\1renamed", text), "utf-8"
            )
            assert f"{path} has no {name}" in problems(PAGE, copy)
        file.write_text(text, "utf-8")
    assert problems(PAGE, copy) == []


@pytest.mark.parametrize("question", QUESTIONS, ids=lambda question: question.text)
def test_an_answer_that_the_page_does_not_give_is_missed(question):
    for wanted in question.answer.values():
        for name in wanted:
            assert len(unanswered(question, PAGE.replace(f"`{name}`", "`nothing`"))) == 2
    for heading in question.headings:
        assert unanswered(question, PAGE.replace(f"### {heading}\n", "### Something else\n"))
