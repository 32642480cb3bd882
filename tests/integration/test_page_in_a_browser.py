"""The page in a real browser: live, without its script, by keyboard, on a phone, for a screen
reader, and against other sites."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

from benchmarks.browsers import browser, until
from benchmarks.page import CHANGE, LIVE, WATCH, beat, crowd, first_load
from jobsync_async import CoordinationConfig
from jobsync_async.web import cluster_page
from tests.pages import needs_chromium, served

pytestmark = needs_chromium

PAGES = ("", "task?id=3", "batches", "batch?batch=n", "history", "ask?act=pin&task=3")
EXPECTED = (
    "net::ERR",  # the page's own server is gone
    "status of",  # it says that something is not so
    "Canvas2D",  # this test reads the picture
)


@asynccontextmanager
async def tab(chromium: Any, **options: Any) -> AsyncIterator[Any]:
    """A tab in a context of its own; nothing may go wrong in it."""
    context = await chromium.new_context(**options)
    page = await context.new_page()
    said: list[str] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    yield page
    await context.close()
    assert [line for line in said if not any(one in line for one in EXPECTED)] == []


async def shown(page: Any) -> list[str]:
    """What a reader sees, without times."""
    text = await page.evaluate(
        """() => {
            const main = document.querySelector("main").cloneNode(true);
            for (const time of main.querySelectorAll("time")) time.remove();
            for (const picture of main.querySelectorAll("figure")) picture.remove();
            return main.textContent;
        }"""
    )
    return text.split()


async def rows(page: Any, name: str) -> None:
    """Wait for a worker's row, told by push."""
    await page.wait_for_selector(f"#workers tr:has-text('{name}')", timeout=3000)


async def cells(page: Any, many: int) -> list[tuple[int, ...]]:
    """The colours of the picture's cells, as they are drawn."""
    numbers = await page.evaluate(
        """() => {
            const canvas = document.querySelector("canvas#cells");
            const paper = canvas.getContext("2d", { willReadFrequently: true });
            return [...paper.getImageData(0, 0, canvas.width, canvas.height).data];
        }"""
    )
    return [tuple(numbers[4 * at : 4 * at + 4]) for at in range(many)]


async def fail_three(claim) -> None:
    if claim.task_id == 3:
        raise ValueError("three is bad")


async def test_changes_are_seen_as_they_happen_and_a_reload_without_the_script_shows_the_same(
    jobs, config
):
    await jobs.start("anna", "berta")
    await jobs.even()
    page = cluster_page(config)
    async with served(page) as url, browser() as chromium:
        async with tab(chromium) as live, tab(chromium, java_script_enabled=False) as plain:
            await live.goto(url)
            await until(live, LIVE)
            owners = jobs.owners()
            before = await cells(live, 120)
            await jobs.start("carla")
            await rows(live, "carla")
            await jobs.even()
            await until(
                live,
                "document.querySelectorAll('#workers tr').length === 3 && "
                "[...document.querySelectorAll('#workers td:nth-child(3)')]"
                ".every((td) => td.textContent === '40')",
            )
            after = await cells(live, 120)
            moved = {token for token in range(120) if owners[token] != jobs.owners()[token]}
            assert {token for token in range(120) if before[token] != after[token]} == moved
            assert "from anna to carla" in " ".join(await shown(live))
            await plain.goto(url)
            assert await shown(plain) == await shown(live)
            await live.reload()
            await until(live, LIVE)
            assert await cells(live, 120) == after

            # The worker that is focused stays so while its row changes; a long absence is made up.
            await jobs.stop("carla")
            await until(live, "document.querySelectorAll('#workers tr').length === 2")
            for number in range(250):
                page.hub.channels["overview"].show(
                    page.hub.channels["overview"].frame, 0.0, page.hub.boot, {"beats": [number]}
                )
            page.hub.boot = "another"
            for channel in page.hub.channels.values():
                channel.tell()
            await jobs.start("dora")
            await rows(live, "dora")


async def test_the_page_says_when_its_own_server_is_gone_and_goes_on_when_it_is_back(jobs, config):
    await jobs.start("anna")
    async with browser() as chromium, tab(chromium) as page:
        async with served(cluster_page(config)) as url:
            await page.goto(url)
            await until(page, LIVE)
        await page.wait_for_selector("#live:has-text('not live')")
        assert await page.is_visible("#workers tr:has-text('anna')"), "the last picture stays"
        port = int(url.rsplit(":", 1)[1].strip("/"))
        async with served(cluster_page(config), port=port):
            await until(page, LIVE, 10)
            await jobs.start("berta")
            await rows(page, "berta")


async def test_there_is_no_serious_finding_for_readers_with_disabilities_on_any_page(jobs, config):
    """By axe, in light and dark, wide and on a phone, where also nothing is wider than the
    screen."""
    from axe_playwright_python.async_playwright import Axe

    await jobs.start("anna", "berta", address="10.0.0.1:80")
    await jobs.even()
    await asyncio.gather(
        *(job.run_batch(range(9), fail_three, name="n", attempts=1) for job in jobs.jobs.values())
    )
    await jobs["anna"].register_lock("pinned", "nobody-%", "why")
    axe, found = Axe(), []
    async with served(cluster_page(config, lambda request: "eve")) as url, browser() as chromium:
        for scheme, width in (("light", 1200), ("dark", 360)):
            size = {"width": width, "height": 740}
            # axe is put into the page, which the page's own rules would not allow
            options = {"color_scheme": scheme, "viewport": size, "bypass_csp": True}
            async with tab(chromium, **options) as page:
                for path in PAGES:
                    await page.goto(url + path)
                    wide = await page.evaluate("document.documentElement.scrollWidth")
                    assert wide <= width, (path, wide)
                    results = await axe.run(page)
                    found += [
                        (path, scheme, one["id"], one["nodes"][0]["html"])
                        for one in results.response["violations"]
                        if one["impact"] in ("serious", "critical", "moderate")
                    ]
    assert found == []


async def test_everything_is_reached_and_done_by_keyboard(jobs, config):
    await jobs.start("anna", "berta")
    await jobs.even()
    async with served(cluster_page(config, lambda request: "eve")) as url, browser() as chromium:
        async with tab(chromium) as page:

            async def press_until(text: str) -> None:
                for _ in range(60):
                    await page.keyboard.press("Tab")
                    focused = await page.evaluate("document.activeElement.textContent")
                    if re.match(text, focused):
                        return
                raise AssertionError(f"no way to {text}")

            await page.goto(url)
            await until(page, LIVE)
            await page.keyboard.press("Tab")
            assert await page.evaluate("document.activeElement.className") == "skip"
            await page.keyboard.press("Enter")
            assert await page.evaluate("document.activeElement.id") == "content"
            await press_until("Drain anna")
            # Its row changes under the focus.
            await jobs.start("carla")
            await rows(page, "carla")
            await jobs.even()
            await until(
                page, "document.activeElement.closest('tr').children[2].textContent === '40'"
            )
            await page.keyboard.press("Enter")
            await page.wait_for_selector("h2:has-text('Drain anna?')")
            await press_until("Drain$")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("text=anna is now draining")
            await jobs.settled(workers=["berta", "carla"])
            await press_until("Task")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("label:has-text('Id of the task')")
            await press_until("$")
            await page.keyboard.type("job <7>")
            await page.keyboard.press("Enter")
            await page.wait_for_selector("h2:has-text('Task job <7>')")


async def test_another_site_can_neither_steer_nor_frame_nor_read_the_page(jobs, config):
    await jobs.start("anna", "berta")
    await jobs.even()
    steered = cluster_page(config, lambda request: "eve")
    async with served(steered) as url, browser() as chromium:
        evil = f"""<!doctype html><iframe id="frame" src="{url}"></iframe>
            <form id="form" method="post" action="{url}ask">
            <input name="act" value="drain"><input name="node" value="anna">
            <input name="token" value="{"x" * 43}"></form>"""
        site = Starlette(routes=[Route("/", lambda request: HTMLResponse(evil))])
        async with served(site) as at:
            context = await chromium.new_context()
            victim = await context.new_page()
            await victim.goto(f"{url}ask?act=drain&node=anna")  # it has a cookie
            page = await context.new_page()
            # another name of the same machine is another site
            await page.goto(at.replace("127.0.0.1", "localhost"))
            frame = await (await page.query_selector("#frame")).content_frame()
            assert "anna" not in await frame.content()
            read = await page.evaluate(f"fetch('{url}').then(() => 'read', () => 'kept out')")
            assert read == "kept out"
            await page.evaluate("document.getElementById('form').submit()")
            await page.wait_for_selector("text=comes from another site")
            # The page's own form goes through.
            await victim.click("button:has-text('Drain')")
            await victim.wait_for_selector("text=anna is now draining")
            await context.close()


async def test_the_first_visit_is_small_and_five_hundred_workers_stay_smooth(dsn, admin):
    await crowd(dsn)
    beats = asyncio.create_task(beat(dsn))
    try:
        page = cluster_page(CoordinationConfig(dsn=dsn))
        async with served(page) as url, browser() as chromium, tab(chromium) as tenth:
            size, requests = await first_load(tenth, url)
            print(f"{size:.1f} KiB, {requests} requests")
            assert size <= 100
            assert requests <= 5
            assert await tenth.locator("#workers tr").count() == 500
            await tenth.evaluate(WATCH)
            await tenth.wait_for_timeout(1000)
            await admin.execute(CHANGE, ["draining", 7, 1007])
            await until(tenth, "window.seen['7']", 2)  # benchmarks/page.py measures it
            await tenth.mouse.wheel(0, 5000)
            await tenth.wait_for_timeout(2500)
            long = await tenth.evaluate("window.long")
            assert max(long, default=0) < 200, long
    finally:
        beats.cancel()
        await asyncio.wait([beats])
