"""A real S3 server in a process of its own, on loopback or the address given: prints its port, serves until killed.

One writer at a time: moto checks If-None-Match and stores the object in two steps, so that with a thread a request two
creators of one key can both be told that they were first. A real store does both as one. Reads have a thread each: a
client may stop reading one answer to write something, as a range of a source is read and written.

Of every key under ``lost-answers/`` the first PUT is carried out and answered with an error, as when a gateway fails.
"""

import sys
import threading
from collections.abc import Iterable
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server


class LosesAnswers:
    """Wraps a WSGI application."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.lost: set[str] = set()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        key = environ["PATH_INFO"]
        if environ["REQUEST_METHOD"] != "PUT" or "lost-answers/" not in key or key in self.lost:
            return self.application(environ, start_response)
        self.lost.add(key)
        for _ in self.application(environ, lambda *_: None):
            pass
        start_response("500 Internal Server Error", [("Content-Length", "0")])
        return [b""]


class OneWriterAtATime:
    """Wraps a WSGI application."""

    def __init__(self, application: Any) -> None:
        self.application = application
        self.writing = threading.Lock()

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        if environ["REQUEST_METHOD"] in ("GET", "HEAD"):
            return self.application(environ, start_response)
        with self.writing:
            return list(self.application(environ, start_response))


class Silent(WSGIRequestHandler):
    """Writes no line a request."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def main() -> None:
    application = OneWriterAtATime(LosesAnswers(DomainDispatcherApplication(create_backend_app)))
    [address] = sys.argv[1:] or ["127.0.0.1"]
    server = make_server(address, 0, application, threaded=True, request_handler=Silent)
    print(server.port, flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
