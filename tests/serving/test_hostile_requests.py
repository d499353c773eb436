"""What a client may not do, and that it costs nobody else an answer."""

import http.client
import json
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from exported_models import export_small_model
from pairwright.errors import ConfigError
from pairwright.serving.http_server import ConnectionLimits, check_host, read_token
from pairwright.serving.request_limits import RequestLimits
from pairwright.serving.reward_service import RewardService
from reward_servers import asked, metric, running, service_of

GOOD = {"prompt": "Why is the sky blue?", "completions": ["Because of scattering.", "It is not."]}
TOKEN = "a-token-of-more-than-16-characters"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("hostile"))


@pytest.fixture
def service(model: Path) -> RewardService:
    return service_of(model)


@pytest.fixture
def url(service: RewardService) -> Iterator[str]:
    with running(service, RequestLimits(None, body_seconds=1), ConnectionLimits(50, 1.5)) as url:
        yield url


def connected(url: str) -> socket.socket:
    parts = urlsplit(url)
    assert parts.hostname is not None
    return socket.create_connection((parts.hostname, parts.port or 0), timeout=20)


def answer_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    content = b""
    try:
        while part := connection.recv(65536):
            content += part
    except ConnectionResetError:
        pass
    return content


def test_only_the_token_opens_and_health_needs_none(service: RewardService) -> None:
    with running(service, RequestLimits(TOKEN)) as url:
        wrong = [
            "",
            "Bearer",
            "Bearer wrong",
            f"Basic {TOKEN}",
            TOKEN,
            f"Bearer {TOKEN}x",
            "Bearer ä".encode().decode("latin1"),
        ]
        for path, body in (
            ("/v1/rewards", GOOD),
            ("/classify", {"input": "a"}),
            ("/metrics", None),
            ("/v1/models", None),
        ):
            for header in wrong:
                status, reply = asked(url + path, body, Authorization=header)
                assert status == 401, (path, header)
                assert "Bearer TOKEN" in reply["error"]["message"]
        assert asked(f"{url}/v1/rewards", GOOD, Authorization=f"Bearer {TOKEN}")[0] == 200
        assert asked(f"{url}/health")[0] == 200


def test_a_token_is_read_from_a_file_or_the_environment_and_is_long(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("PAIRWRIGHT_TOKEN", raising=False)
    assert read_token(None) is None
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    assert read_token(str(file)) == TOKEN
    file.write_text("short\n")
    with pytest.raises(ConfigError, match="5 characters, expected at least 16"):
        read_token(str(file))
    monkeypatch.setenv("PAIRWRIGHT_TOKEN", TOKEN)
    assert read_token(None) == TOKEN
    with pytest.raises(ConfigError, match="cannot be read"):
        read_token(str(tmp_path / "none"))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.7", "example.org", ""])
def test_off_loopback_a_token_is_needed(host: str) -> None:
    with pytest.raises(ConfigError, match="can be reached from other machines"):
        check_host(host, None, is_open=False)
    check_host(host, TOKEN, is_open=False)
    check_host(host, None, is_open=True)
    for own in ("127.0.0.1", "::1", "localhost"):
        check_host(own, None, is_open=False)


@pytest.mark.parametrize("is_announced", [True, False], ids=["content-length", "chunked"])
def test_a_body_of_100_megabytes_is_refused_before_it_is_read(url: str, *, is_announced: bool) -> None:
    head = "Content-Length: 104857600" if is_announced else "Transfer-Encoding: chunked"
    with connected(url) as connection:
        connection.sendall(f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\n{head}\r\n\r\n".encode())
        sent = 0
        try:
            for _ in range(100):
                block = b"x" * (1 << 20)
                connection.sendall(block if is_announced else b"100000\r\n" + block + b"\r\n")
                sent += len(block)
        except OSError:
            pass  # the server has closed
        assert sent < 100 << 20
        found = answer_of(connection)
    assert not found or b" 413 " in found.split(b"\r\n")[0]
    assert asked(f"{url}/v1/rewards", GOOD)[0] == 200


@pytest.mark.parametrize(
    ("body", "status", "named"),
    [
        (b"", 400, "no JSON"),
        (b"{", 400, "no JSON"),
        (b"\xff\xfe", 400, "no JSON"),
        (b"[" * 200_000, 422, "Expected `object`"),
        (b'{"prompt": ' + b"[" * 100_000 + b"]" * 100_000 + b', "completions": ["a"]}', 400, "nested too deeply"),
        (b'{"prompt": "p", "completions": [NaN]}', 400, "no JSON"),
        (b'{"prompt": "p", "completions": ["a"], "chat_template_kwargs": {"x": Infinity}}', 400, "no JSON"),
        (b'{"prompt": "p", "completions": ["\\ud800"]}', 400, "no JSON"),
        (b'{"prompt": "p", "completions": ["a", null]}', 422, "completions[1]"),
        (b'{"prompt": "", "completions": ["a"]}', 422, "empty prompt"),
        (b'{"prompt": "p", "completions": ' + json.dumps(["a"] * 1001).encode() + b"}", 422, "one request may hold"),
        (b"[]", 422, "Expected `object`"),
        (b'"text"', 422, "Expected `object`"),
    ],
)
def test_a_body_that_is_not_what_it_should_be_is_refused_in_words(
    url: str, body: bytes, status: int, named: str
) -> None:
    found, reply = asked(f"{url}/v1/rewards", body)
    assert (found, named in reply["error"]["message"]) == (status, True), reply
    assert "\n" not in reply["error"]["message"]
    assert asked(f"{url}/v1/rewards", GOOD)[0] == 200


def test_slow_senders_are_cut_off_and_cost_nobody_an_answer(url: str) -> None:
    started = time.monotonic()
    with ExitStack() as stack:
        headers = [stack.enter_context(connected(url)) for _ in range(10)]
        bodies = [stack.enter_context(connected(url)) for _ in range(10)]
        for connection in headers:
            connection.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nX-Slow: ")
        for connection in bodies:
            connection.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 50\r\n\r\n{")
        assert asked(f"{url}/v1/rewards", GOOD)[0] == 200
        assert time.monotonic() - started < 1.4
        assert all(b" 408 " in answer_of(connection).split(b"\r\n")[0] for connection in bodies)
        assert all(answer_of(connection) == b"" for connection in headers)
        assert time.monotonic() - started < 10


def test_idle_connections_cost_nobody_an_answer(url: str) -> None:
    with ExitStack() as stack:
        idle = [stack.enter_context(connected(url)) for _ in range(400)]
        for _ in range(3):
            assert asked(f"{url}/v1/rewards", GOOD)[0] == 200
        closed = 0
        for connection in idle:
            connection.settimeout(10)
            closed += answer_of(connection) == b""
        assert closed == 400


def test_a_connection_in_use_is_kept_for_longer_than_an_idle_one(url: str) -> None:
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=20)
    connection.connect()
    own = connection.sock
    for _ in range(10):
        connection.request("POST", "/v1/rewards", json.dumps(GOOD))
        with connection.getresponse() as reply:
            assert len(json.loads(reply.read())["rewards"]) == 2
        time.sleep(0.3)
    assert connection.sock is own
    connection.close()


def test_a_client_that_goes_away_is_counted_and_others_are_answered(model: Path) -> None:
    with running(service_of(model, max_wait_seconds=0.5)) as url:
        body = json.dumps(GOOD).encode()
        for _ in range(5):
            with connected(url) as connection:
                head = f"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n"
                connection.sendall(head.encode() + body)
        with connected(url) as connection:  # in the middle of its body
            connection.sendall(b"POST /v1/rewards HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n{")
        assert asked(f"{url}/v1/rewards", GOOD)[0] == 200
        deadline = time.monotonic() + 5
        while metric(url, "pairwright_clients_gone_total") < 6 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert metric(url, "pairwright_clients_gone_total") == 6
        assert metric(url, "pairwright_texts_total") == 2


def test_too_many_at_once_fail_by_429_alone(model: Path) -> None:
    with running(service_of(model, max_queue=20)) as url, ThreadPoolExecutor(24) as pool:
        statuses = [status for status, _ in pool.map(lambda _: asked(f"{url}/v1/rewards", GOOD), range(300))]
    assert set(statuses) <= {200, 429}
    assert statuses.count(200) > 0
    assert statuses.count(429) > 0
