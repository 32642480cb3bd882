"""Child processes that end with their worker.

A worker that is killed on a host with other workers is replaced at once, since they see its process
end. A child of it, which does its work, would go on beside the new owner. One that has called
`die_with_parent` does not.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from multiprocessing import connection, parent_process

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Let this process, a child, be killed when the one that started it ends, however that ends.

    For ``ProcessPoolExecutor(initializer=die_with_parent)``, at the start of a
    ``multiprocessing.Process``, or, for programs, as ``preexec_fn=die_with_parent``.

    On Linux the kernel kills it, before anybody can see the parent's end. What counts is the
    *thread* that started the child, so start children in one that lasts. With the start method
    ``forkserver`` it is the fork server, which ends a moment later than the worker: give
    ``mp_context`` another. On other systems a thread of the child waits for the end, which works
    for multiprocessing alone. Children of the child are not reached: each has to call it.

    Raises OSError when that cannot be done here.
    """
    if sys.platform == "linux":
        import ctypes  # noqa: PLC0415 - only children need it

        parent = os.getppid()
        if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(
                number,
                f"the kernel refuses to tie this process to its parent: {os.strerror(number)}",
            )
        if os.getppid() != parent:  # it ended before that
            os._exit(1)
        return
    parent_started = parent_process()
    if parent_started is None:
        raise OSError(
            "this process is none of multiprocessing's, and on this system no other can be tied "
            "to its parent"
        )
    threading.Thread(
        target=_outlive_nobody, args=(parent_started.sentinel,), daemon=True, name="die_with_parent"
    ).start()


def _outlive_nobody(sentinel: int) -> None:
    connection.wait([sentinel])
    os._exit(1)
