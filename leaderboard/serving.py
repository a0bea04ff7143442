"""Serve a built site to this machine."""

from __future__ import annotations

import errno
import functools
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from normbench.leaderboard.publish import MARKER, SiteError


def server(folder: Path, host: str, port: int) -> ThreadingHTTPServer:
    """A server of the site in `folder`, ready for `serve_forever`.

    Raises:
        SiteError: if there is no site in the folder, or the port is in use.
    """
    if not (folder / MARKER).exists():
        raise SiteError(f"{folder} holds no site; build one with `normbench site build`")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(folder.absolute()))
    try:
        return ThreadingHTTPServer((host, port), handler)
    except OSError as error:
        if error.errno not in (errno.EADDRINUSE, errno.EACCES):
            raise
        why = "is in use" if error.errno == errno.EADDRINUSE else "needs more rights"
        raise SiteError(f"port {port} {why}; choose another with --port (0: any)") from None
