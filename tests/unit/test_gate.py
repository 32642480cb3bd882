"""Several beside each other, or one alone."""

from __future__ import annotations

import asyncio

import anyio
import pytest

from jobsync_async.host.gate import Gate


async def test_one_alone_waits_for_those_inside_and_holds_off_those_who_come():
    gate, order = Gate(), []
    await gate.enter()
    await gate.enter()

    async def alone() -> None:
        async with gate.alone():
            order.append("alone")

    async def beside() -> None:
        await gate.enter()
        order.append("beside")
        gate.leave()

    tasks = [asyncio.ensure_future(alone())]
    await asyncio.sleep(0)
    tasks.append(asyncio.ensure_future(beside()))
    await asyncio.sleep(0)
    assert gate.closed
    gate.leave()
    await asyncio.sleep(0)
    assert order == []
    gate.leave()
    await asyncio.gather(*tasks)
    assert order == ["alone", "beside"]
    assert not gate.closed


async def test_of_two_who_want_to_be_alone_one_is_at_a_time():
    gate, inside, most = Gate(), 0, 0

    async def alone() -> None:
        nonlocal inside, most
        async with gate.alone():
            inside += 1
            most = max(most, inside)
            await asyncio.sleep(0)
            inside -= 1

    await asyncio.gather(*(alone() for _ in range(5)))
    assert most == 1


async def test_who_is_cancelled_while_it_waits_to_be_alone_leaves_the_gate_open():
    gate = Gate()
    await gate.enter()
    with pytest.raises(TimeoutError), anyio.fail_after(0.01):
        async with gate.alone():
            pytest.fail("somebody is inside")
    await gate.enter()
