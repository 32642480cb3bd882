"""What is built holds what it should, and nothing more."""

from __future__ import annotations

import subprocess
import sys
import tarfile
import zipfile
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import jobsync_async

ROOT = Path(__file__).parents[2]
NAME = f"jobsync_async-{jobsync_async.__version__}"
LITTER = {"__pycache__", ".pytest_cache", ".mypy_cache", ".ruff_cache", ".hypothesis"}


def files(*names: str) -> set[str]:
    """Every file under these names, but what tools leave behind."""
    found = set[str]()
    for name in names:
        paths = [ROOT / name] if (ROOT / name).is_file() else (ROOT / name).rglob("*")
        relative = (path.relative_to(ROOT) for path in paths if path.is_file())
        found |= {str(path) for path in relative if not LITTER & set(path.parts)}
    return found


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    if not (ROOT / "jobsync_async").is_dir():
        pytest.skip("the source is not here: an installed wheel is tested")
    folder = tmp_path_factory.mktemp("built")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-d", str(folder)],
        cwd=ROOT,
        check=True,
        timeout=60,
    )
    return folder


def test_the_wheel_is_the_package_and_the_pytest_plugin(built):
    (wheel,) = built.glob("*.whl")
    assert wheel.name == f"{NAME}-py3-none-any.whl"
    about = {
        f"{NAME}.dist-info/{name}"
        for name in ("METADATA", "WHEEL", "RECORD", "entry_points.txt", "licenses/LICENSE")
    }
    with zipfile.ZipFile(wheel) as archive:
        assert set(archive.namelist()) == files("jobsync_async", "pytest_jobsync_async.py") | about
        metadata = archive.read(f"{NAME}.dist-info/METADATA").decode()
    assert {
        "jobsync_async/py.typed",
        "jobsync_async/postgres/schema.sql",
        "jobsync_async/postgres/queries.sql",
    } <= files("jobsync_async")
    needed = [
        line
        for line in metadata.splitlines()
        if line.startswith("Requires-Dist") and "extra ==" not in line
    ]
    assert {line.split()[1].split(">")[0].split("[")[0] for line in needed} == {
        "anyio", "psycopg", "exceptiongroup", "typing-extensions",
    }  # fmt: skip


def test_the_source_archive_can_be_tested(built):
    with tarfile.open(built / f"{NAME}.tar.gz") as archive:
        names = {
            member.name.removeprefix(f"{NAME}/")
            for member in archive.getmembers()
            if member.isfile()
        }
    folders = ("jobsync_async", "tests", "examples", "docs", "benchmarks")
    single = (
        "pytest_jobsync_async.py",
        "pyproject.toml",
        "README.md",
        "CHANGELOG.md",
        "CONTRIBUTING.md",
        "LICENSE",
        ".gitignore",
    )
    assert names == files(*folders, *single) | {"PKG-INFO"}


def test_the_installed_entry_points_are_there():
    (command,) = entry_points(group="console_scripts", name="jobsync-async")
    (plugin,) = entry_points(group="pytest11", name="jobsync_async")
    assert callable(command.load())
    assert plugin.load().jobsync_cluster


WITHOUT_LIBPQ = """
import ctypes.util, sys
class Without:
    def find_spec(self, name, path=None, target=None):
        if name in ("psycopg_binary", "psycopg_c"):
            raise ImportError(f"no {name}")
sys.meta_path.insert(0, Without())
ctypes.util.find_library = lambda name: None
import jobsync_async
"""


def test_a_missing_libpq_leads_to_the_extra_that_brings_it_along():
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_LIBPQ],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 1
    assert "`pip install 'jobsync-async[binary]'` brings it along" in done.stderr.splitlines()[-1]
