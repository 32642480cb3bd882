"""Looking up the addresses of a name.

asyncio does it in the threads that users' code may block for long (``asyncio.to_thread``). Then no
connection could be opened, and a worker that lost one would lose its lease. So each look-up has a
thread of its own.
"""

from __future__ import annotations

import asyncio
import socket
import threading
from contextlib import suppress


async def addresses(host: str, port: str, limit_sec: float) -> list[str]:
    """All addresses that the name has now, in the system's order. Nothing is remembered. Raises
    OSError, also when it takes longer than the limit."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def tell(found: list[str] | None, error: OSError | None) -> None:
        if answer.done():  # nobody waits any more
            return
        if error is not None:
            answer.set_exception(error)
        else:
            answer.set_result(found or [])

    def look_up() -> None:
        found, error = None, None
        try:
            rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
            found = [str(address[0]) for *_, address in rows]
        except OSError as raised:
            error = raised
        except UnicodeError as raised:  # such as a part of the name that is too long
            error = OSError(str(raised))
        with suppress(RuntimeError):  # the loop was closed meanwhile
            loop.call_soon_threadsafe(tell, found, error)

    threading.Thread(target=look_up, name=f"jobsync_async looks up {host}", daemon=True).start()
    await asyncio.wait([answer], timeout=limit_sec)
    if not answer.done():
        answer.cancel()
        raise TimeoutError(f"no answer within {limit_sec:g} s")
    return answer.result()
