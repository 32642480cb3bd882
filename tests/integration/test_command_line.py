"""The command line as a user runs it: processes, exit statuses, pipes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest
from psycopg.conninfo import make_conninfo

from jobsync_async import Job
from tests.integration.test_commands import documented, fits

COMMAND = [sys.executable, "-m", "jobsync_async"]


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=90,
        env={**os.environ, **environment},
    )


def tables(dsn: str) -> list[str]:
    with psycopg.connect(dsn) as connection:
        return [
            name
            for (name,) in connection.execute(
                "SELECT tablename FROM pg_tables WHERE schemaname = 'public' ORDER BY 1"
            )
        ]


def test_without_arguments_it_shows_help_and_fails_as_misused():
    done = run()
    assert done.returncode == 2
    assert "demo" in done.stdout + done.stderr


def test_an_unknown_command_is_misuse():
    assert run("dance").returncode == 2


def test_init_makes_the_tables_and_doing_it_again_changes_nothing(empty_dsn):
    for _ in range(2):
        done = run("init", JOBSYNC_DSN=empty_dsn, JOBSYNC_APPNAME="app_")
        assert done.returncode == 0, done.stderr
        assert "app_" in done.stdout
    assert "app_token" in tables(empty_dsn)


def test_init_sql_prints_a_script_that_an_administrator_can_run_and_connects_to_nothing(empty_dsn):
    done = run("init", "--sql", "--appname", "app_", "--dsn", "host=does.not.exist.invalid")
    assert done.returncode == 0, done.stderr
    with psycopg.connect(empty_dsn, autocommit=True) as connection:
        connection.execute(done.stdout.encode())
    assert "app_token" in tables(empty_dsn)
    # The script makes tables; the first worker, or init, adds the row with the settings.
    assert run("init", "--dsn", empty_dsn, "--appname", "app_").returncode == 0


def test_init_clone_goes_with_no_other_order(empty_dsn):
    for other in (["--sql"], ["--role", "app"], ["--observer-role", "app"]):
        done = run("init", "--clone", *other, "--dsn", empty_dsn)
        assert done.returncode == 2 and "--clone goes with none of" in done.stderr.replace(
            "\n", " "
        )


def test_init_refuses_other_settings_than_the_clusters(empty_dsn):
    assert run("init", "--dsn", empty_dsn, "--total-tokens", "100").returncode == 0
    done = run("init", "--dsn", empty_dsn, "--total-tokens", "200")
    assert done.returncode == 2
    assert "100" in done.stderr
    assert "200" in done.stderr


def test_a_bad_setting_is_misuse_and_the_password_is_not_shown():
    done = run("status", "--dsn", "postgresql://u:s3cret@localhost:port/x")
    assert done.returncode == 2
    assert "--dsn or JOBSYNC_DSN" in done.stderr
    assert "s3cret" not in done.stderr + done.stdout
    assert "Traceback" not in done.stderr


NOWHERE = "host=127.0.0.1 port=1 user=u dbname=d password=s3cret connect_timeout=2"


@pytest.mark.parametrize(
    "command",
    ["status", "watch", "plan", "explain x", "drain anna", "locks list", "init", "contract"],
)
def test_a_server_that_is_not_there_is_an_error_of_one_line_that_says_how_to_name_another(command):
    done = run(*command.split(), "--dsn", NOWHERE)
    assert (done.returncode, done.stdout) == (1, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: PostgreSQL is not available")
    assert line.endswith(
        "; tried host 127.0.0.1, port 1, database d, user u: give another with --dsn or JOBSYNC_DSN"
    )
    assert "s3cret" not in line


def test_where_was_looked_is_told_as_libpq_takes_it_from_everywhere():
    done = run("status", PGHOST="127.0.0.1", PGPORT="1", PGUSER="u", PGCONNECT_TIMEOUT="2")
    assert "tried host 127.0.0.1, port 1, database u, user u:" in done.stderr
    done = run("doctor", "--dsn", NOWHERE, COLUMNS="400")
    assert "tried host 127.0.0.1, port 1, database d, user u" in done.stdout
    assert "give another with --dsn or JOBSYNC_DSN" in done.stdout
    done = run("demo", "--dsn", NOWHERE)
    assert (
        "tried host 127.0.0.1, port 1, database d, user u: give another with --dsn" in done.stderr
    )
    assert "s3cret" not in done.stderr


def test_a_shell_completes_commands_and_options():
    complete = {"_JOBSYNC_ASYNC_COMPLETE": "complete_bash", "COMP_CWORD": "1"}
    script = (
        "import sys; from jobsync_async.__main__ import main; sys.argv = ['jobsync-async']; main()"
    )

    def completed(typed: str, word: int) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-c", script],
            capture_output=True,
            text=True,
            check=False,
            env={**os.environ, **complete, "COMP_WORDS": typed, "COMP_CWORD": str(word)},
        )
        return done.stdout.split()

    assert completed("jobsync-async sta", 1) == ["status"]
    assert completed("jobsync-async status --ti", 2) == ["--timeout"]


def test_status_of_a_cluster_that_is_not_there_says_so_and_creates_nothing(empty_dsn):
    done = run("status", "--dsn", empty_dsn)
    assert done.returncode == 1
    assert "no cluster 'sync_'" in done.stderr
    assert tables(empty_dsn) == []


async def test_status_shows_the_workers_and_is_0_while_everything_is_owned(config, dsn):
    async with Job("anna", config) as job, Job("berta", config):
        shown = await in_thread("status", "--dsn", dsn)
        assert shown.returncode == 0, shown.stdout + shown.stderr
        assert "2 live workers" in shown.stdout
        assert "anna" in shown.stdout
        told = await in_thread("status", "--dsn", dsn, "--json")
        seen = json.loads(told.stdout)
        assert {node["name"]: node["tokens"] for node in seen["nodes"]} == {"anna": 60, "berta": 60}
        assert seen["leader"] == "anna"

        await job.register_lock("task", "nobody-%")
        while len(job.my_tokens) == 60 and await owned(dsn) == 120:
            pass
        lacking = await in_thread("status", "--dsn", dsn)
        assert lacking.returncode == 1
        assert "1 owned by nobody" in lacking.stdout
        assert "nobody-%" in lacking.stdout
    assert (await in_thread("status", "--dsn", dsn)).returncode == 1


async def test_status_fits_a_narrow_terminal_and_a_pipe_that_is_closed(config, dsn):
    async with Job("a-worker-with-a-rather-long-name", config):
        narrow = await in_thread("status", "--dsn", dsn, COLUMNS="40")
        assert narrow.returncode == 0, narrow.stderr
        assert max(map(len, narrow.stdout.splitlines())) <= 40
        for arguments in (["status"], ["status", "--json"]):
            reader, writer = os.pipe()
            os.close(reader)
            process = subprocess.Popen(
                [*COMMAND, *arguments, "--dsn", dsn], stdout=writer, stderr=subprocess.PIPE
            )
            os.close(writer)
            import anyio.to_thread

            _, errors = await anyio.to_thread.run_sync(process.communicate)
            assert errors == b""
            assert process.returncode in (0, 141)


async def in_thread(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    import anyio.to_thread

    return await anyio.to_thread.run_sync(lambda: run(*arguments, **environment))


async def owned(dsn: str) -> int:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        cursor = await connection.execute("SELECT count(*) FROM sync_token WHERE node IS NOT NULL")
        ((count,),) = await cursor.fetchall()
        return count


# -- watch -----------------------------------------------------------------------------------------


class Watching:
    """A `watch` in a pipe, and the lines that it has printed."""

    def __init__(self, dsn: str, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "watch", "--dsn", dsn, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.lines: list[str] = []

    async def until(self, text: str) -> str:
        """Read lines until one has the text; that one."""
        import anyio.to_thread

        assert self.process.stdout is not None
        while True:
            line = await anyio.to_thread.run_sync(self.process.stdout.readline)
            assert line, self.lines
            self.lines.append(line)
            if text in line:
                return line

    async def end(self, action) -> str:
        """End it by an action; its errors. It must end by itself, with 0."""
        import anyio.to_thread

        action()
        errors = await anyio.to_thread.run_sync(self._ended)
        assert self.process.returncode == 0, errors
        return errors

    def _ended(self) -> str:
        self.process.wait(timeout=20)
        assert self.process.stderr is not None
        return self.process.stderr.read()

    def __enter__(self) -> Watching:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        with self.process:
            pass


async def test_watch_tells_each_change_in_a_line_and_ends_on_signals_and_a_closed_pipe(config, dsn):
    async with Job("anna", config):
        with Watching(dsn) as plain, Watching(dsn, "--json") as as_json:
            assert "1 live worker, 120 tokens, all owned; led by anna" in await plain.until("anna")
            first = json.loads(await as_json.until("anna"))
            assert fits(documented()["watch"], first) == []
            async with Job("berta", config) as berta:
                await plain.until("berta joined")
                if not any("berta 0 → 60" in line for line in plain.lines):
                    await plain.until("berta 0 → 60")
                await berta.drain()
                await plain.until("berta is draining")
            await plain.until("berta is gone")
            assert (
                json.loads(await as_json.until('"active_nodes": 2'))["nodes"][1]["name"] == "berta"
            )
            # Nothing is to be printed now: it notices all the same that its reader has gone.
            assert as_json.process.stdout is not None
            assert await as_json.end(as_json.process.stdout.close) == ""
            assert await plain.end(lambda: plain.process.send_signal(signal.SIGTERM)) == ""


async def test_watch_on_a_terminal_redraws_and_ends_on_ctrl_c(config, dsn):
    import pty

    import anyio.to_thread

    async with Job("anna", config):
        ours, theirs = pty.openpty()
        process = subprocess.Popen(
            [*COMMAND, "watch", "--dsn", dsn],
            stdin=theirs,
            stdout=theirs,
            stderr=subprocess.PIPE,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "60", "LINES": "20"},
        )
        os.close(theirs)
        shown = b""
        while b"anna" not in shown or b"1 live worker" not in shown:
            shown += await anyio.to_thread.run_sync(os.read, ours, 4096)
        process.send_signal(signal.SIGINT)
        while True:  # a terminal that nobody reads would hold it up
            try:
                if not await anyio.to_thread.run_sync(os.read, ours, 4096):
                    break
            except OSError:
                break
        _, errors = await anyio.to_thread.run_sync(process.communicate)
        os.close(ours)
        assert (process.returncode, errors) == (0, b"")
        assert b"\x1b[" in shown


# -- the demo --------------------------------------------------------------------------------------


def processes_of(marker: str) -> list[str]:
    """Command lines of processes that carry `marker` in their environment."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:
            continue
    return found


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that the server can reach, which may run as another user. Not pytest's: each run of
    it closes them all."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o711)
        yield folder


linux = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")


@linux
def test_the_demo_keeps_its_promises_and_leaves_nothing_behind(open_folder):
    started = time.monotonic()
    done = run("demo", TMPDIR=str(open_folder), DEMO_TEST_MARK=f"mark-{os.getpid()}-a")
    assert done.returncode == 0, done.stdout + done.stderr
    assert time.monotonic() - started < 60
    assert done.stdout.count(" yes ") == 3
    assert "beta killed by SIGKILL" in done.stdout
    assert "delta joined" in done.stdout
    assert list(open_folder.iterdir()) == []
    assert processes_of(f"mark-{os.getpid()}-a") == []


@pytest.mark.needs("sessions")
@linux
def test_the_demo_on_a_server_of_ones_own_drops_its_tables(empty_dsn):
    done = run("demo", "--dsn", empty_dsn, "--files", "400", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    answer = json.loads(done.stdout)
    assert fits(documented()["demo"], answer) == []
    assert sum(answer["completed"].values()) == answer["files"] == 400
    assert all(check["kept"] for check in answer["checks"])
    assert "beta killed by SIGKILL" in done.stderr
    assert tables(empty_dsn) == []


@pytest.mark.needs("sessions")
@linux
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_demo_that_is_ended_early_leaves_nothing_behind(empty_dsn, number):
    mark = f"mark-{os.getpid()}-{number}"
    # A shell lets what it starts in the background ignore SIGINT, and so do these tests and their
    # children then.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)
    process = subprocess.Popen(
        [*COMMAND, "demo", "--dsn", empty_dsn],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "DEMO_TEST_MARK": mark},
    )
    signal.signal(signal.SIGINT, ignored)
    assert process.stdout is not None
    for line in process.stdout:
        if "workers share" in line:
            break
    process.send_signal(number)
    output, errors = process.communicate(timeout=30)
    assert process.returncode not in (0, None), output + errors
    assert "Traceback" not in errors
    assert processes_of(mark) == []
    assert tables(empty_dsn) == [], errors


def test_the_demo_says_that_a_server_cannot_be_reached():
    dsn = make_conninfo(host="127.0.0.1", port="1", dbname="x", user="x", connect_timeout="2")
    done = run("demo", "--dsn", dsn)
    assert done.returncode == 1
    assert done.stderr.startswith("error:")
