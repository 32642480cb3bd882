"""Where a connection string leads now, and in which order it is tried.

Each connection looks its names up anew, so that a failover by changed DNS is followed. A place that
hung is tried last: a server that was left may still take connections, on which no commit ends.
"""

from __future__ import annotations

import asyncio
import os
import random
from ipaddress import ip_address
from typing import Any

import psycopg
from psycopg import pq
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from jobsync_async.host.resolving import addresses

_Place = tuple[str, str, str]
_ALL = ("host", "hostaddr", "port", "service")


class Hung:
    """The places that hung, that of late last. They are kept as long as the process has this: where
    no other place serves, one that hung is tried all the same."""

    def __init__(self) -> None:
        self._places = list[_Place]()

    def __bool__(self) -> bool:
        return bool(self._places)

    def note(self, pgconn: pq.abc.PGconn) -> None:
        """Remember where a connection leads. No I/O."""
        told = {option.keyword.decode(): (option.val or b"").decode() for option in pgconn.info}
        place = _known(told["host"], told["hostaddr"], told["port"])
        self._places = [other for other in self._places if other != place] + [place]

    def last(self, places: list[_Place]) -> list[_Place]:
        """The same places in their order, those that hung last."""
        order = {place: number for number, place in enumerate(self._places, start=1)}
        return sorted(places, key=lambda place: order.get(_known(*place), 0))


async def resolved(conninfo: str, hung: Hung | None = None) -> str:
    """The same connection string with the addresses that its names have now; a name that has
    several is there several times, and one that has none is left out. What hung comes last.

    Raises OperationalError when none has any. What is libpq's to find (a service file, a socket),
    and what has addresses already, is left as it is.
    """
    parts = conninfo_to_dict(conninfo)
    given = {name: str(parts.get(name) or os.environ.get(f"PG{name.upper()}", "")) for name in _ALL}
    hosts, ports = given["host"].split(","), given["port"].split(",")
    ports = ports * len(hosts) if len(ports) == 1 else ports
    if (
        given["hostaddr"]
        or given["service"]
        or len(ports) != len(hosts)
        or not (any(map(_is_name, hosts)) or (hung and len(hosts) > 1))
    ):
        return conninfo
    limit_sec = timeout_from_conninfo(parts)
    found = await asyncio.gather(
        *(_places(*place, limit_sec) for place in zip(hosts, ports, strict=True)),
        return_exceptions=True,
    )
    places = [place for each in found if isinstance(each, list) for place in each]
    errors = [each for each in found if isinstance(each, BaseException)]
    for error in errors:
        if not places or not isinstance(error, psycopg.OperationalError):
            raise error
    order = dict[str, str]()
    if hung:
        if _at_random(parts.get("load_balance_hosts")):
            random.shuffle(places)
            order = {"load_balance_hosts": "disable"}
        places = hung.last(places)
    names, addrs, numbers = zip(*places, strict=True)
    at = {"host": ",".join(names), "hostaddr": ",".join(addrs), "port": ",".join(numbers)}
    return make_conninfo("", **{**parts, **at, **order})


def _known(host: str, address: str, port: str) -> _Place:
    """How libpq calls a place that was given so."""
    return host, address or host, port or "5432"


def _at_random(wanted: Any) -> bool:
    """Whether the servers of a connection string are tried in an order of chance, which libpq knows
    from version 16 on."""
    return pq.version() >= 160000 and (wanted or os.environ.get("PGLOADBALANCEHOSTS")) == "random"


def _is_name(host: str) -> bool:
    if not host or host.startswith(("/", "@")):
        return False
    try:
        ip_address(host.partition("%")[0])
    except ValueError:
        return True
    return False


async def _places(host: str, port: str, limit_sec: float) -> list[_Place]:
    if not _is_name(host):
        return [(host, "", port)]
    try:
        found = await addresses(host, port or "5432", limit_sec)
    except OSError as error:
        raise psycopg.OperationalError(f"failed to resolve host {host!r}: {error}") from None
    return [(host, address, port) for address in found]
