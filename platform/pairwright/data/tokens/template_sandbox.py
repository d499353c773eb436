"""Renders chat templates in a child process, under limits on processor time, memory and output.

A template is a program that comes with a model. Jinja's sandbox keeps it from files and attributes, but not from
``'a' * 10**9`` or from loops without an end, and no thread can interrupt these. So it runs where the kernel can: what
goes over a limit ends the child, never this process. Texts are those of transformers' own ``render_jinja_template``.
"""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any, TypeAlias

import msgspec
from jinja2 import TemplateError

from pairwright.data.extras import Turn, read_extra
from pairwright.errors import DataError

Conversation: TypeAlias = Sequence[Turn]
"""Turns of ``role`` and ``content``, with ``extra`` where one has more and ``context`` in the first: data/extras.py."""

MAX_SECONDS = 2
"""Of processor time for one conversation. Templates take some 50 us, and 0.2 s for 20 MB of text."""
MAX_MEMORY_BYTES = 512 << 20
"""Address space beyond what the child starts with; a conversation of 2 million characters takes some 30 MB."""
OUTPUT_FACTOR, OUTPUT_EXTRA = 64, 1_000_000
"""Most characters of a text: so many times those of the conversation, and so many more (tools, a long preamble)."""
MAX_EXCESSES = 3
"""Conversations over a limit after which the template, and no longer the conversation, is at fault."""
_MAX_REASON = 300
_REQUEST_CHARACTERS, _REQUEST_CONVERSATIONS = 4_000_000, 256
_HEADER_BYTES = 8


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a template gave no text for a conversation."""

    reason: str


class _Request(msgspec.Struct):
    template: str
    special_tokens: dict[str, str]
    context: str | None
    conversations: Sequence[Conversation]


class _Reply(msgspec.Struct, array_like=True):
    """The text of one conversation; or the reason why there is none, and whether that is a limit."""

    text: str | None = None
    reason: str = ""
    is_excess: bool = False


_REPLIES = msgspec.msgpack.Decoder(list[_Reply])


def render_conversations(
    template: str, special_tokens: Mapping[str, str], conversations: Sequence[Conversation]
) -> list[str | Refusal]:
    """Return the text of each conversation, or why the template gave none; whatever it raises is such a reason.

    Args:
        template: Jinja source.
        special_tokens: role, such as ``bos_token``, to token; variables of the template.
        conversations: turns, of which the template gets every field by its name; the first one's context is given
            beside them.

    Raises:
        DataError: if the template went over a limit for the third time in this process.
    """
    return _renderer().render(template, dict(special_tokens), conversations)


@cache
def _renderer() -> "_Renderer":
    return _Renderer()


class _Renderer:
    """The child process of this process; started when it is first needed, and anew after a limit has ended it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None
        self._excesses: dict[str, int] = {}

    def render(
        self, template: str, special_tokens: dict[str, str], conversations: Sequence[Conversation]
    ) -> list[str | Refusal]:
        texts: list[str | Refusal] = []
        with self._lock:
            for part in _parts(conversations):
                for reply in self._ask(_Request(template, special_tokens, _context(part[0]), part)):
                    texts.append(Refusal(reply.reason) if reply.text is None else reply.text)
        return texts

    def _ask(self, request: _Request) -> list[_Reply]:
        """Return the reply to each conversation of a request; where one ends the child, they are asked one by one."""
        replies = self._exchange(request)
        if replies is None:
            status = self._forget_child()
            if len(request.conversations) > 1:
                single = [msgspec.structs.replace(request, conversations=[one]) for one in request.conversations]
                return [reply for asked in single for reply in self._ask(asked)]
            replies = [_Reply(reason=_how_ended(status), is_excess=True)]
        for reply in replies:
            if reply.is_excess:
                self._count_excess(request.template, reply.reason)
        return replies

    def _exchange(self, request: _Request) -> list[_Reply] | None:
        """Return the replies to a request, or None where the child ended instead."""
        child = self._child = self._child or _start_child()
        assert child.stdin is not None
        assert child.stdout is not None
        try:
            _send(child.stdin, msgspec.msgpack.encode(request))
            content = _receive(child.stdout)
        except BrokenPipeError:
            return None
        except BaseException:  # Ctrl-C between request and reply: what the child still writes is nobody's
            child.kill()
            self._forget_child()
            raise
        return None if content is None else _REPLIES.decode(content)

    def _forget_child(self) -> int:
        """Wait for the end of a child that is ending, and return its exit status."""
        child, self._child = self._child, None
        assert child is not None
        with contextlib.suppress(BrokenPipeError), child:
            pass
        return child.returncode

    def _count_excess(self, template: str, reason: str) -> None:
        self._excesses[template] = self._excesses.get(template, 0) + 1
        if self._excesses[template] >= MAX_EXCESSES:
            raise DataError(
                f"the chat template gives no text: {reason}, the {MAX_EXCESSES}rd time now: such a template is "
                "faulty or hostile"
            )


def _parts(conversations: Sequence[Conversation]) -> Iterator[Sequence[Conversation]]:
    """Yield what goes into one request each, of one context, which the child holds as a whole."""
    start = num_characters = 0
    for index, conversation in enumerate(conversations):
        size = _num_characters(conversation)
        if index > start and (
            index - start == _REQUEST_CONVERSATIONS
            or num_characters + size > _REQUEST_CHARACTERS
            or _context(conversation) != _context(conversations[start])
        ):
            yield conversations[start:index]
            start, num_characters = index, 0
        num_characters += size
    if conversations:
        yield conversations[start:]


def _num_characters(conversation: Conversation) -> int:
    return sum([len(text) for message in conversation for text in message.values()])


def _context(conversation: Conversation) -> str | None:
    return conversation[0].get("context") if conversation else None


def _start_child() -> subprocess.Popen[bytes]:
    path = os.pathsep.join(entry for entry in sys.path if entry)
    # Threads of numpy's BLAS would take gigabytes of address space on a large machine, and compute nothing.
    environment = os.environ | {"PYTHONPATH": path, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-P", "-c", "from pairwright.data.tokens.template_sandbox import serve; serve()"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )


def _how_ended(status: int) -> str:
    if status == -signal.SIGPROF:
        return f"took more than {MAX_SECONDS} s of processor time for one conversation"
    return (
        f"ended the process that renders it (exit status {status}), as too deep a recursion does, or more than "
        f"{MAX_MEMORY_BYTES >> 20} MiB of memory"
    )


def _send(stream: IO[bytes], content: bytes) -> None:
    stream.write(len(content).to_bytes(_HEADER_BYTES, "little") + content)
    stream.flush()


def _receive(stream: IO[bytes]) -> bytes | None:
    """Return the next message, or None at the stream's end."""
    header = stream.read(_HEADER_BYTES)
    if len(header) < _HEADER_BYTES:
        return None
    size = int.from_bytes(header, "little")
    content = stream.read(size)
    return content if len(content) == size else None


# ------------------------------------------------------------------------------------------ in the child


def serve() -> None:
    """Answer requests on stdin until it is closed: the child's whole life."""
    from transformers.utils.chat_template_utils import render_jinja_template

    requests = sys.stdin.buffer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C reaches the whole group; the parent decides what it means
    _limit_memory()
    while (content := _receive(requests)) is not None:
        request = msgspec.msgpack.decode(content, type=_Request)
        context = read_extra(request.context)
        variables = request.special_tokens | (context.get("chat_template_kwargs") or {})
        variables |= {"chat_template": request.template, "tools": context.get("tools")}
        render = partial(_texts, render_jinja_template, variables)
        replies = _render_at_once(render, request.conversations)
        if replies is None:
            replies = [_render(render, conversation) for conversation in request.conversations]
        signal.setitimer(signal.ITIMER_PROF, 0)
        _send(sys.stdout.buffer, msgspec.msgpack.encode(replies))


def _texts(
    render: Callable[..., Any], variables: Mapping[str, Any], conversations: Sequence[Conversation]
) -> list[str]:
    """Return the text of each conversation as transformers renders it, with each turn's extra as fields of its own."""
    messages = [
        [read_extra(turn.get("extra")) | {"role": turn["role"], "content": turn["content"]} for turn in conversation]
        for conversation in conversations
    ]
    texts, _ = render(messages, **variables)
    return texts


def _render_at_once(render: Callable[..., Any], conversations: Sequence[Conversation]) -> list[_Reply] | None:
    """Return the replies to all, in three quarters of the time of one by one; or None where anything is wrong."""
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)  # nobody handles SIGPROF, so it ends this process
    with contextlib.suppress(Exception):  # one by one says which of them it was, and why
        texts = render(conversations)
        if max(map(len, texts), default=0) <= OUTPUT_EXTRA and all(text.isascii() or text.encode() for text in texts):
            return [_Reply(text) for text in texts]
    return None


def _render(render: Callable[..., Any], conversation: Conversation) -> _Reply:
    """Return the reply to one conversation."""
    num_characters = _num_characters(conversation)
    limit = OUTPUT_FACTOR * num_characters + OUTPUT_EXTRA
    signal.setitimer(signal.ITIMER_PROF, MAX_SECONDS)
    try:
        (text,) = render([conversation])
        if len(text) <= limit:
            text.encode()  # half a surrogate pair is no text
            return _Reply(text)
        reason = f"gives {len(text):,} characters for a conversation of {num_characters:,}, over the limit of {limit:,}"
    except MemoryError:
        reason = f"took more than {MAX_MEMORY_BYTES >> 20} MiB of memory for one conversation"
    except TemplateError as error:
        return _refusal(error.message or type(error).__name__)
    except Exception as error:  # a template can raise whatever Python does
        return _refusal(f"{type(error).__name__}: {error}")
    return _Reply(reason=reason, is_excess=True)


def _refusal(reason: str) -> _Reply:
    shown = reason if len(reason) <= _MAX_REASON else f"{reason[:_MAX_REASON]}..."
    return _Reply(reason=shown.encode("utf-8", "replace").decode())


def _limit_memory() -> None:
    if sys.platform != "linux":  # elsewhere the limit does not hold; time and output are bounded all the same
        return
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = used + MAX_MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_AS, (limit if hard == resource.RLIM_INFINITY else min(limit, hard), hard))
