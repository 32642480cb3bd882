"""The page: a cluster seen, and steered, in a browser. Needs the extra ``web``.

``jobsync-async web`` serves it. `cluster_page` makes an application to mount in one of your own.
docs/how-to/web-page.md shows both.
"""

from __future__ import annotations

from jobsync_async.config import CoordinationConfig
from jobsync_async.web.app import ClusterPage, Steer

__all__ = ["ClusterPage", "Steer", "cluster_page"]


def cluster_page(config: CoordinationConfig, steer: Steer | None = None) -> ClusterPage:
    """The page as an ASGI application: ``app.mount("/cluster", cluster_page(config))``. No I/O: it
    connects when somebody looks at it.

    It knows no visitors and keeps nobody out: let only those reach it who may see the cluster.

    Args:
        config: the cluster. Its role needs SELECT only, and a worker's rights with `steer`.
        steer: says who may drain, pin, retry and so on. It is called with the request (Starlette's)
            of each act, and returns the person's name, which is written down, or None or False for
            somebody who may not. It may be a coroutine function. None: the page only looks.
    """
    return ClusterPage(config, steer)
