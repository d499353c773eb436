"""Finds what a chat template leaves out of a conversation: tools, tool calls, reasoning, turns of some roles.

A conversation is rendered with each of them and without it; where both give the same text, the template shows nothing
of it, and what would be trained is not what was judged. Plain conversations of users and assistants cost nothing, other
roles one look for each order of roles.
"""

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeAlias

from pairwright.data.extras import Turn, has_extras, is_blank, read_extra, write_extra
from pairwright.data.tokens.template_sandbox import Conversation, Refusal

Render: TypeAlias = Callable[[Sequence[Conversation]], list[str | Refusal]]

_SPOKEN = frozenset({"user", "assistant"})
_KINDS = (("tool_calls",), ("reasoning_content", "thinking"))
"""Fields of turns that must be shown; names of one thing go together, since transformers copies one into the other."""
_ROLES_KEPT = 4096


class _Trial(NamedTuple):
    """A conversation without one thing, and the text of the same conversation with it."""

    group: int
    conversation: Conversation
    text: str
    missing: str
    """What the template shows nothing of, if the text stays the same."""
    is_excluded_by_rule: bool = False
    """Whether the template may leave it out here if it shows the like elsewhere: the reasoning of earlier turns."""


class ShownByTemplate:
    """What a template shows.

    Args:
        template: Jinja source.
        render: gives the texts of conversations under it.
    """

    def __init__(self, template: str, render: Render) -> None:
        self._template = template
        self._render = render
        self._hidden_roles: dict[tuple[str, ...], str | None] = {}
        self._shows: dict[str, bool] = {}

    def refusals(
        self, prompts: Sequence[Conversation], rendered: Sequence[Sequence[tuple[Conversation, str | Refusal]]]
    ) -> list[Refusal | None]:
        """Return for each prompt why its group is refused: what the template leaves out of it; else None.

        Args:
            prompts: the groups' prompts.
            rendered: each prompt with each of its completions, and its text.
        """
        missing: dict[int, str] = {}
        trials: list[_Trial] = []
        for group, (prompt, with_replies) in enumerate(zip(prompts, rendered, strict=True)):
            if not any(has_extras(conversation) for conversation, _ in with_replies):
                roles = tuple(turn["role"] for turn in prompt)
                if not _SPOKEN.issuperset(roles) and (role := self._hidden_role(roles)) is not None:
                    missing[group] = _role(role)
                continue
            if unused := self._unused_variable(prompt):
                missing[group] = f"variable `{unused}` of `chat_template_kwargs`"
            trials += _trials(group, prompt, with_replies)
        texts = self._render([trial.conversation for trial in trials])
        for trial, text in zip(trials, texts, strict=True):
            if text == trial.text and not (trial.is_excluded_by_rule and self._shows_field(trial.missing)):
                missing.setdefault(trial.group, trial.missing)
        return [
            Refusal(f"the chat template shows no {missing[group]}") if group in missing else None
            for group in range(len(prompts))
        ]

    def _hidden_role(self, roles: tuple[str, ...]) -> str | None:
        """Return the first role of which the template shows no content in such a prompt, if there is one."""
        if roles not in self._hidden_roles:
            if len(self._hidden_roles) == _ROLES_KEPT:
                self._hidden_roles.clear()
            turns = [{"role": role, "content": "x"} for role in (*roles, "assistant")]
            others = sorted(set(roles) - _SPOKEN)
            text, *changed = self._render([turns, *(_changed(turns, role) for role in others)])
            same = [role for role, other in zip(others, changed, strict=True) if text == other]
            self._hidden_roles[roles] = same[0] if same and isinstance(text, str) else None
        return self._hidden_roles[roles]

    def _unused_variable(self, prompt: Conversation) -> str | None:
        """Return the first of the conversation's own variables that the template does not name."""
        variables = read_extra(prompt[0].get("context")).get("chat_template_kwargs", {}) if prompt else {}
        return next((name for name in variables if not re.search(rf"\b{re.escape(name)}\b", self._template)), None)

    def _shows_field(self, missing: str) -> bool:
        """Return whether the template shows a field of a conversation's last turn."""
        if missing not in self._shows:
            plain = [{"role": "user", "content": "x"}, {"role": "assistant", "content": "x"}]
            full = [plain[0], plain[1] | {"extra": write_extra({missing.strip("`"): "y"}) or ""}]
            without, text = self._render([plain, full])
            self._shows[missing] = isinstance(text, str) and text != without
        return self._shows[missing]


def _trials(
    group: int, prompt: Conversation, with_replies: Sequence[tuple[Conversation, str | Refusal]]
) -> Iterator[_Trial]:
    """Yield the trials of a group: its prompt's with one completion, and those of each completion."""
    whole = [(conversation, text) for conversation, text in with_replies if isinstance(text, str)]
    if not whole:
        return
    (*_, reply), text = whole[0]
    if not is_blank(read_extra(prompt[0].get("context")).get("tools")):
        yield _Trial(group, [_without(prompt[0], "context", ("tools",)), *prompt[1:], reply], text, "`tools`")
    for role in sorted({turn["role"] for turn in prompt} - _SPOKEN):
        yield _Trial(group, [*_changed(prompt, role), reply], text, _role(role))
    for names in _KINDS:
        if name := _held(prompt, names):
            turns = [_without(turn, "extra", names) for turn in prompt]
            yield _Trial(group, [*turns, reply], text, f"`{name}`", is_excluded_by_rule=name != "tool_calls")
        for (*_, reply_k), text_k in whole:
            if name := _held([reply_k], names):
                yield _Trial(group, [*prompt, _without(reply_k, "extra", names)], text_k, f"`{name}`")


def _role(role: str) -> str:
    return f"turn of role `{role}`"


def _held(turns: Sequence[Turn], names: Sequence[str]) -> str | None:
    """Return the first of some fields that says something in any of some turns."""
    fields: list[Mapping[str, object]] = [read_extra(turn.get("extra")) for turn in turns]
    return next((name for name in names for held in fields if not is_blank(held.get(name))), None)


def _without(turn: Turn, attribute: str, names: Sequence[str]) -> Turn:
    """Return a turn without some fields of its extra or its context."""
    kept = write_extra({key: value for key, value in read_extra(turn.get(attribute)).items() if key not in names})
    others = {key: value for key, value in turn.items() if key != attribute}
    return others if kept is None else others | {attribute: kept}


def _changed(turns: Sequence[Turn], role: str) -> list[Turn]:
    """Return turns with other contents where they have a role."""
    return [{**turn, "content": f"{turn['content']} x"} if turn["role"] == role else turn for turn in turns]
