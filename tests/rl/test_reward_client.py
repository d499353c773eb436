"""The client gives every reward that was asked for, or an error; and verl's function is a call of it."""

import http.server
import importlib.util
import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import pairwright.rl.reward_functions
from exported_models import export_small_model, plain_rewards
from pairwright.errors import ConfigError, RewardError
from pairwright.rl import RewardClient, compute_score, reward_function
from pairwright.serving.request_limits import RequestLimits
from reward_servers import running, service_of

PROMPT = "Why is the sky blue?"
TEXTS = ["Because of scattering.", "It is not; it is green.", "", "Because of scattering."]
TOKEN = "a-token-of-more-than-16-characters"
GOOD = (200, {"rewards": [1.5, -2.0]}, {})


@contextmanager
def scripted(replies: Sequence[tuple[int, Any, dict[str, str]] | None]) -> Iterator[tuple[str, list[float]]]:
    """Yield a server that gives these replies in turn, the last for ever; None closes the connection instead."""
    times: list[float] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            reply = replies[min(len(times), len(replies) - 1)]
            times.append(time.monotonic())
            self.rfile.read(int(self.headers["Content-Length"]))
            if reply is None:
                self.connection.close()
                return
            status, content, headers = reply
            body = content if isinstance(content, bytes) else json.dumps(content).encode()
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(body))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 - the base class's name
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}", times
        server.shutdown()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export_small_model(tmp_path_factory.mktemp("rl"))


SERVE_STARTS = b"Path '/v1/rewards' not found. Ping http://.../-/routes for available routes."
"""What Ray Serve 2.60 answers with status 404 while an application starts."""


@pytest.mark.parametrize(
    "failure",
    [None, (500, b"x", {}), (503, {}, {}), (429, {}, {"Retry-After": "0.4"}), (408, {}, {}), (404, SERVE_STARTS, {})],
)
def test_what_passes_is_retried(failure: Any) -> None:
    with scripted([failure, failure, GOOD]) as (url, times):
        assert RewardClient(url).rewards("p", ["a", "b"]) == [1.5, -2.0]
    assert len(times) == 3
    if failure is not None and failure[0] == 429:
        assert times[1] - times[0] >= 0.4


@pytest.mark.parametrize(
    ("reply", "named"),
    [
        ((422, {"error": {"message": "$.prompt: no"}}, {}), "$.prompt: no"),
        ((401, {"error": {"message": "token"}}, {}), "token"),
        ((404, b"<html>", {}), "status 404"),
        ((200, b"<html>", {}), "no JSON"),
        ((200, {"rewards": [1.0]}, {}), "expected 2 rewards, got 1"),
        ((200, {"rewards": [1.0, None]}, {}), "completion 1 is None"),
        ((200, b'{"rewards": [NaN, 1.0]}', {}), "completion 0 is nan"),
        ((200, {"rewards": [1.0, "2"]}, {}), "completion 1"),
        ((200, {"scores": [1.0, 2.0]}, {}), "expected 2 rewards, got none"),
        ((200, [], {}), "expected 2 rewards"),
    ],
)
def test_what_does_not_pass_is_an_error_at_once(reply: Any, named: str) -> None:
    with scripted([reply, GOOD]) as (url, times), pytest.raises(RewardError) as error:
        RewardClient(url).rewards("p", ["a", "b"])
    assert named in str(error.value)
    assert len(times) == 1


def test_the_deadline_holds_and_the_error_says_what_came_last() -> None:
    started = time.monotonic()
    with scripted([(503, {"error": {"message": "draining"}}, {})]) as (url, times), pytest.raises(RewardError) as error:
        RewardClient(url, deadline_seconds=1).rewards("p", ["a"])
    assert time.monotonic() - started < 3
    assert len(times) > 1
    assert f"after {len(times)} tries" in str(error.value)
    assert "draining" in str(error.value)
    with pytest.raises(RewardError, match="ConnectionRefusedError"):
        RewardClient(url, deadline_seconds=0.3).rewards("p", ["a"])


def test_another_server_is_asked_where_one_is_lost() -> None:
    with scripted([GOOD]) as (url, _):
        assert RewardClient(["http://127.0.0.1:9", url]).rewards("p", ["a", "b"]) == [1.5, -2.0]


@pytest.mark.parametrize(
    "url", ["", "demo/model", "ftp://x", "http://", "http://user:secret@x", "http://x?token=secret"]
)
def test_an_address_that_is_none_of_a_server_is_refused_and_shows_no_secret(url: str) -> None:
    with pytest.raises(ConfigError) as error:
        RewardClient(url)
    assert "secret" not in str(error.value)


def test_every_way_gives_the_rewards_of_plain_transformers(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = [{"role": "user", "content": PROMPT}]
    expected = pytest.approx(plain_rewards(model, chat, TEXTS), abs=2e-6)
    with running(service_of(model), RequestLimits(TOKEN)) as url:
        client = RewardClient(url, TOKEN)
        assert client.rewards(PROMPT, TEXTS) == expected
        assert client.rewards(chat, []) == []
        assert client.rewards_of_groups([(PROMPT, TEXTS), (chat, TEXTS)]) == [expected, expected]
        with pytest.raises(RewardError, match="401"):
            RewardClient(url, "wrong").rewards(PROMPT, TEXTS)
        monkeypatch.setenv("PAIRWRIGHT_TOKEN", TOKEN)
        for function in (reward_function(url), reward_function(str(model))):
            assert function(prompts=[PROMPT] * 4, completions=TEXTS, completion_ids=[], other=1) == expected
            turns = [[{"role": "assistant", "content": text}] for text in TEXTS]
            assert function(prompts=[chat] * 4, completions=turns) == expected
        monkeypatch.setenv("PAIRWRIGHT_REWARD_URL", url)
        verl = as_verl_loads_it()
        for prompt in (PROMPT, chat):
            found = [verl("d", text, "truth", {"prompt": prompt}) for text in TEXTS]
            assert found == expected
        assert verl("d", TEXTS[0], None, {"question": PROMPT}, prompt_key="question") == found[0]
    with pytest.raises(RewardError, match="holds no `prompt`"):
        compute_score("d", "text", None, {"index": 3}, url="http://127.0.0.1:9")


def as_verl_loads_it() -> Callable[..., float]:
    """Return the function as verl's `get_custom_reward_fn` does: from the path of its file."""
    spec = importlib.util.spec_from_file_location("custom_module", pairwright.rl.reward_functions.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["custom_module"] = module
    spec.loader.exec_module(module)
    return module.compute_score


def test_the_client_imports_no_torch_and_no_ray() -> None:
    program = (
        "import sys, pairwright.rl; print([n for n in ('torch', 'ray', 'transformers', 'numpy') if n in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, text=True).stdout.strip() == "[]"
