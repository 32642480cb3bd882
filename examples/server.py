"""A PostgreSQL to try things out with. Ctrl-C ends it and deletes its data.

    python server.py

It writes its address into the file dsn.txt. Its programs come with the extra
`embedded`, which is part of the extra `demo`.
"""

import signal
from pathlib import Path

from jobsync_async.embedded import EmbeddedPostgres

ENDS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]

with EmbeddedPostgres() as server:
    Path("dsn.txt").write_text(server.dsn)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDS)
    print("The server is up. Its address is in dsn.txt.", flush=True)
    signal.sigwait(ENDS)
print("The server is gone, and its data too.")
