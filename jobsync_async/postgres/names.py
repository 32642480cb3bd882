"""Where the names of a connection string lead now: each connection asks anew, so that a failover by
changed DNS is followed."""

from __future__ import annotations

import asyncio
import os
from ipaddress import ip_address

import psycopg
from psycopg.conninfo import conninfo_to_dict, make_conninfo, timeout_from_conninfo

from jobsync_async.host.resolving import addresses

_Place = tuple[str, str, str]
_ALL = ("host", "hostaddr", "port", "service")


async def resolved(conninfo: str) -> str:
    """The same connection string with the addresses that its names have now; a name that has
    several is there several times, and one that has none is left out.

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
        or not any(map(_is_name, hosts))
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
    names, addrs, numbers = zip(*places, strict=True)
    at = {"host": ",".join(names), "hostaddr": ",".join(addrs), "port": ",".join(numbers)}
    return make_conninfo("", **{**parts, **at})


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
