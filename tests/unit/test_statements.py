"""The files of statements."""

from __future__ import annotations

import re
from importlib import resources


def test_each_statement_has_a_name_of_its_own():
    folder = resources.files("jobsync_async.postgres")
    texts = [folder.joinpath(name).read_text("utf-8") for name in ("queries.sql", "operators.sql")]
    names = [name for text in texts for name in re.findall(r"^-- name: (\w+)$", text, re.MULTILINE)]
    assert len(names) > 100
    assert sorted(names) == sorted(set(names)), (
        "of two statements with one name, the first could never be sent"
    )
