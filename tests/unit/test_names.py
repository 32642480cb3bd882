"""A connection string leads to the addresses that its names have now, found in threads of its
own."""

from __future__ import annotations

import asyncio
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import psycopg
import pytest
from psycopg.conninfo import conninfo_to_dict

from jobsync_async.host.resolving import addresses
from jobsync_async.postgres.names import Hung, resolved

KNOWN = {"one": ["10.0.0.1"], "two": ["10.0.0.2", "10.0.0.3"]}


@pytest.fixture(autouse=True)
def dns(monkeypatch) -> list[str]:
    """What was asked."""
    for name in ("PGHOST", "PGHOSTADDR", "PGPORT", "PGSERVICE", "PGLOADBALANCEHOSTS"):
        monkeypatch.delenv(name, raising=False)
    asked = []

    def getaddrinfo(host, port, **how):
        asked.append(host)
        if host not in KNOWN:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        return [(None, None, None, "", (address, port)) for address in KNOWN[host]]

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    return asked


@pytest.mark.parametrize(
    ("given", "host", "hostaddr", "port"),
    [
        ("host=one", "one", "10.0.0.1", ""),
        ("host=one,two port=1,2", "one,two,two", "10.0.0.1,10.0.0.2,10.0.0.3", "1,2,2"),
        ("host=two,one port=7", "two,two,one", "10.0.0.2,10.0.0.3,10.0.0.1", "7,7,7"),
        ("host=/run,one,10.1.1.1 port=7", "/run,one,10.1.1.1", ",10.0.0.1,", "7,7,7"),
        ("host=gone,one port=1,2", "one", "10.0.0.1", "2"),
    ],
)
async def test_each_name_is_looked_up_and_what_has_no_address_is_left_out(
    given, host, hostaddr, port
):
    parts = conninfo_to_dict(await resolved(f"{given} dbname=x password='p w'"))
    assert (parts["dbname"], parts["password"]) == ("x", "p w")
    assert (parts["host"], parts["hostaddr"]) == (host, hostaddr)
    assert parts["port"].strip(",") == port


@pytest.mark.parametrize(
    "given",
    [
        "host=10.1.1.1",
        "host=::1",
        "host=/run",
        "dbname=x",
        "host=one hostaddr=10.1.1.1",
        "service=x host=one",
        "host=one,two port=1,2,3",
    ],
)
async def test_what_needs_no_look_up_or_is_libpqs_is_left_as_it_is(given, dns):
    assert await resolved(given) == given
    assert dns == []


class Known:
    """What a connection that libpq made says of where it leads."""

    def __init__(self, host: str, address: str, port: str) -> None:
        told = {"host": host, "hostaddr": address, "port": port, "dbname": None}
        self.info = [
            SimpleNamespace(keyword=name.encode(), val=None if said is None else said.encode())
            for name, said in told.items()
        ]


def hung(*places: tuple[str, str, str]) -> Hung:
    noted = Hung()
    for place in places:
        noted.note(Known(*place))
    return noted


ONE, OTHER = ("10.1.1.1", "10.1.1.1", "5432"), ("10.1.1.2", "10.1.1.2", "5432")
SOCKET, SECOND = ("/run", "", "5432"), ("two", "10.0.0.2", "7")


@pytest.mark.parametrize(
    ("given", "places", "host", "hostaddr", "port"),
    [
        ("host=10.1.1.1,10.1.1.2", [ONE], "10.1.1.2,10.1.1.1", ",", ","),
        ("host=10.1.1.1,10.1.1.2,/run", [ONE, OTHER], "/run,10.1.1.1,10.1.1.2", ",,", ",,"),
        ("host=10.1.1.1,10.1.1.2,/run", [ONE, OTHER, ONE], "/run,10.1.1.2,10.1.1.1", ",,", ",,"),
        ("host=/run,10.1.1.1", [SOCKET], "10.1.1.1,/run", ",", ","),
        ("host=10.1.1.1,10.1.1.1 port=5432,7", [ONE], "10.1.1.1,10.1.1.1", ",", "7,5432"),
        ("host=two port=7", [SECOND], "two,two", "10.0.0.3,10.0.0.2", "7,7"),
        ("host=one,two port=7", [SECOND], "one,two,two", "10.0.0.1,10.0.0.3,10.0.0.2", "7,7,7"),
    ],
)
async def test_what_hung_is_tried_last_and_what_hung_of_late_after_that(
    given, places, host, hostaddr, port
):
    parts = conninfo_to_dict(await resolved(given, hung(*places)))
    assert (parts["host"], parts["hostaddr"], parts["port"]) == (host, hostaddr, port)


async def test_an_only_place_that_hung_is_left_as_it_is():
    assert await resolved("host=10.1.1.1", hung(ONE)) == "host=10.1.1.1"


@pytest.mark.skipif(psycopg.pq.version() < 160000, reason="libpq 16 brought load_balance_hosts")
@pytest.mark.parametrize("by_environment", [False, True])
async def test_what_hung_is_tried_last_among_servers_in_an_order_of_chance_too(
    monkeypatch, by_environment
):
    given = "host=10.1.1.1,10.1.1.2,10.1.1.3"
    if by_environment:
        monkeypatch.setenv("PGLOADBALANCEHOSTS", "random")
    else:
        given += " load_balance_hosts=random"
    orders = set()
    for _ in range(50):
        parts = conninfo_to_dict(await resolved(given, hung(ONE)))
        assert parts["load_balance_hosts"] == "disable", "psycopg would mix them again"
        orders.add(parts["host"])
    assert orders == {"10.1.1.2,10.1.1.3,10.1.1.1", "10.1.1.3,10.1.1.2,10.1.1.1"}


async def test_a_host_of_the_environment_is_looked_up_too(monkeypatch):
    monkeypatch.setenv("PGHOST", "one")
    monkeypatch.setenv("PGPORT", "99")
    parts = conninfo_to_dict(await resolved("dbname=x"))
    assert (parts["host"], parts["hostaddr"], parts["port"]) == ("one", "10.0.0.1", "99")


async def test_names_that_nobody_knows_are_an_error_that_names_one():
    with pytest.raises(psycopg.OperationalError, match="failed to resolve host 'gone'"):
        await resolved("host=gone,away")


async def test_a_look_up_that_takes_too_long_is_given_up(monkeypatch):
    answer = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *place, **how: answer.wait(10) and [])
    with pytest.raises(TimeoutError, match=r"0\.05 s"):
        await addresses("one", "5432", 0.05)
    answer.set()


async def test_no_thread_of_asyncio_is_waited_for():
    loop = asyncio.get_running_loop()
    loop.set_default_executor(ThreadPoolExecutor(1))
    go_on = threading.Event()
    blocked = loop.run_in_executor(None, go_on.wait)
    try:
        assert await addresses("one", "5432", 5) == ["10.0.0.1"]
    finally:
        go_on.set()
        await blocked
