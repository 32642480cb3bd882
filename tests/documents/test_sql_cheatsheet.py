"""The SQL that operators are given runs."""

from __future__ import annotations

import re
from pathlib import Path

from jobsync_async import Job
from tests.documents.blocks import PAGES

DOCS = Path(__file__).parents[2] / "docs"


async def test_the_sql_cheatsheet_runs_and_answers(make_config, admin):
    text = (DOCS / "sql-cheatsheet.md").read_text("utf-8")
    blocks = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    assert not any("DELETE" in block for block in blocks[:-1])
    assert len(blocks) > 9
    async with Job("anna", make_config(total_tokens=120)) as job:
        await job.add_task("x")
        answered = 0
        for statement in (part for block in blocks for part in block.split(";") if part.strip()):
            cursor = await admin.execute(statement)
            answered += cursor.description is not None and len(await cursor.fetchall()) > 0
        assert answered >= 7


def test_links_between_the_documents_lead_somewhere():
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text("utf-8")):
            assert link.startswith("https://") or (page.parent / link).exists(), (
                f"{page.name}: {link}"
            )
