"""The jobs interface of a Ray 2.60 dashboard over real HTTP and websockets, whose jobs do what a test says.

Ray's own heads are in ``ray_head.py``; what they do only once in a thousand times, this one does when it is told.
"""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web


@dataclass
class Job:
    """A job as the dashboard knows it; a test changes it while it is followed."""

    entrypoint: str
    metadata: dict[str, str] = field(default_factory=dict)
    runtime_env: dict[str, Any] = field(default_factory=dict)
    status: str = "RUNNING"
    log: str = ""
    message: str = ""
    exit_code: int | None = None


class JobsApi:
    """A dashboard; ``stop`` and ``start`` are a restart on the same port."""

    def __init__(self) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        self.address = f"http://127.0.0.1:{self._port}"
        self.jobs: dict[str, Job] = {}
        self._logs_before: dict[str, str] = {}
        """Of deleted jobs: a log's file stays, and the next job of that name goes on in it."""
        self.num_streams = 0
        self.streamed_characters: int | None = None
        """After so many characters of a log its stream ends, whatever the job does."""
        self.start()

    def start(self) -> None:
        ready = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, args=(ready,), daemon=True)
        self._thread.start()
        assert ready.wait(30)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(30)

    def _serve(self, ready: threading.Event) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/version", self._version),
                web.get("/api/packages/gcs/{name}", self._package),
                web.post("/api/jobs/", self._submit),
                web.get("/api/jobs/{job}", self._details),
                web.delete("/api/jobs/{job}", self._delete),
                web.get("/api/jobs/{job}/logs", self._logs),
                web.get("/api/jobs/{job}/logs/tail", self._tail),
            ]
        )
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        self._loop.run_until_complete(runner.setup())
        self._loop.run_until_complete(web.TCPSite(runner, "127.0.0.1", self._port, reuse_address=True).start())
        ready.set()
        self._loop.run_forever()
        self._loop.run_until_complete(runner.cleanup())
        self._loop.close()

    async def _version(self, _: web.Request) -> web.Response:
        return web.json_response({"version": "4", "ray_version": "2.60.0", "ray_commit": "", "session_name": ""})

    async def _package(self, _: web.Request) -> web.Response:
        return web.Response()  # it is there, and need not be uploaded

    async def _submit(self, request: web.Request) -> web.Response:
        asked = await request.json()
        name = asked.get("submission_id") or f"raysubmit_{len(self.jobs)}"
        if name in self.jobs:
            return web.Response(status=500, text=f"Job with submission_id {name} already exists.")
        log = self._logs_before.get(name, "")
        self.jobs[name] = Job(asked["entrypoint"], asked["metadata"], asked["runtime_env"], log=log)
        return web.json_response({"job_id": name, "submission_id": name})

    def _found(self, request: web.Request) -> Job:
        name = request.match_info["job"]
        if name not in self.jobs:
            raise web.HTTPNotFound(text=f"Job {name} does not exist")
        return self.jobs[name]

    async def _details(self, request: web.Request) -> web.Response:
        job, name = self._found(request), request.match_info["job"]
        shown = {"type": "SUBMISSION", "submission_id": name, "job_id": None, "status": job.status}
        shown |= {"entrypoint": job.entrypoint, "message": job.message, "driver_exit_code": job.exit_code}
        return web.json_response(shown)

    async def _delete(self, request: web.Request) -> web.Response:
        name = request.match_info["job"]
        self._logs_before[name] = self._found(request).log
        del self.jobs[name]
        return web.json_response({"deleted": True})

    async def _logs(self, request: web.Request) -> web.Response:
        return web.json_response({"logs": self._found(request).log})

    async def _tail(self, request: web.Request) -> web.WebSocketResponse:
        job, socket_, sent = self._found(request), web.WebSocketResponse(), 0
        await socket_.prepare(request)
        self.num_streams += 1
        end = self.streamed_characters
        while end is None or sent < end:
            if new := job.log[sent:end]:
                await socket_.send_str(new)
                sent += len(new)
            elif job.status not in ("PENDING", "RUNNING"):
                break
            await asyncio.sleep(0.02)
        await socket_.close()
        return socket_


@contextmanager
def jobs_api() -> Iterator[JobsApi]:
    """Serve until the end of the block."""
    api = JobsApi()
    try:
        yield api
    finally:
        api.stop()
