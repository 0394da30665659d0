"""Conversations as text, by the tokenizer's chat template, and where in it the answers are.

A template may render a turn otherwise when more turns follow: without its reasoning, with another
end token, after a heading that opens a block of thought. So answers are looked for in the rendering
of the whole conversation. Where a turn's text lies there is found by changing it and comparing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from c2r.errors import InputError
from c2r.text.conversations import Conversation, Message
from c2r.text.templates import template_limits

Span = tuple[int, int]
"""`[start, end)` in characters."""

REASONING = ("reasoning_content", "reasoning", "thinking")
"""Names that data and templates have for what a model thinks before it answers."""

_HEADINGS = {"system": "", "user": "### User:\n", "assistant": "### Assistant:\n"}
_MARK = "\ue000"  # of a private area: no text begins with it
_SHOWN = 40


def render(
    conversation: Conversation, tokenizer: Any, *, last_only: bool = False
) -> tuple[str, list[Span]]:
    """The conversation as text, and the `[start, end)` characters of each answer but empty ones.

    The tokenizer's chat template makes the text, of whole messages and tools. Without one, messages
    are headed `### User:` and `### Assistant:`; a system message has no heading. Each ends with a
    blank line, the answer before it with the tokenizer's end-of-text token, where it has one. An
    answer includes its reasoning and tool calls, as far as they are rendered, and its end marker,
    so that a model learns to stop.

    Args:
        conversation: one.
        tokenizer: with a `chat_template`, or without.
        last_only: give the last answer only.

    Raises:
        InputError: the template refuses the conversation, does not use a part of it, or an answer
            cannot be told from the rest of what it renders.
    """
    refused = f"{conversation.source}: the tokenizer's chat template refuses it"
    with template_limits(refused, "change the messages, or the template"):
        rendering = _Rendering(_prepared(conversation, tokenizer), tokenizer)
        text = rendering.of(rendering.conversation.messages)
        return text, rendering.answers(text, last_only)


def unused_fields(conversation: Conversation, tokenizer: Any) -> set[str]:
    """Fields of messages that the template does not name, so that they change nothing."""
    template = str(getattr(tokenizer, "chat_template", None) or "")
    names = {name for message in conversation.messages for name in message}
    known = {"role", "content", "weight", "tool_calls", *REASONING}
    return {name for name in names - known if name not in template}


def _prepared(conversation: Conversation, tokenizer: Any) -> Conversation:
    """Reasoning under the name that the template has for it.

    Raises `InputError` where the template does not use the reasoning, the tools or their calls.
    """
    template = str(getattr(tokenizer, "chat_template", None) or "")
    messages = [dict(message) for message in conversation.messages]
    unused = ["its tools"] if conversation.tools and "tools" not in template else []
    for number, message in enumerate(messages, start=1):
        given = next((name for name in REASONING if message.get(name)), None)
        used = next((name for name in (given, *REASONING) if name and name in template), None)
        if given is not None and used is not None:
            message[used] = message.pop(given)
        elif given is not None:
            unused.append(f"the {given} of message {number}")
        if message.get("tool_calls") and "tool_calls" not in template:
            unused.append(f"the tool_calls of message {number}")
        if not template and message["role"] not in _HEADINGS:
            unused.append(f"the role {message['role']}")
    if unused:
        why = "the tokenizer's chat template does not use" if template else "no chat template takes"
        raise InputError(
            f"{conversation.source}: {why} {', '.join(unused)}, which would be dropped; leave it "
            "out of the data, or give the tokenizer a template that does"
        )
    return replace(conversation, messages=tuple(messages))


@dataclass(frozen=True, slots=True)
class _Rendering:
    """A conversation, and what a tokenizer makes of it and of parts of it."""

    conversation: Conversation
    tokenizer: Any

    def of(self, messages: Sequence[Message], *, asks: bool = False) -> str:
        """The text of `messages`; where it `asks`, up to where the assistant begins."""
        if getattr(self.tokenizer, "chat_template", None):
            return str(
                self.tokenizer.apply_chat_template(
                    [_without_weight(message) for message in messages],
                    tools=list(self.conversation.tools) or None,
                    tokenize=False,
                    add_generation_prompt=asks,
                    **self.conversation.options,
                )
            )
        ends = {"assistant": self.tokenizer.eos_token or ""}
        parts = [
            f"{_HEADINGS[m['role']]}{m['content']}{ends.get(m['role'], '')}\n\n" for m in messages
        ]
        heading = _HEADINGS["assistant"] if asks else ""
        return (self.tokenizer.bos_token or "") + "".join(parts) + heading

    def answers(self, text: str, last_only: bool) -> list[Span]:
        """The spans of the answers in `text`, which is the whole."""
        learnt = [
            index
            for index, message in enumerate(self.conversation.messages)
            if index >= self.conversation.num_given and _is_learnt(message)
        ]
        return [self._answer(index, text) for index in (learnt[-1:] if last_only else learnt)]

    def _answer(self, index: int, text: str) -> Span:
        """Where message `index` is, from where the model would begin to write it."""
        messages = self.conversation.messages
        before = self.of(messages[:index], asks=True)
        through = self.of(messages[: index + 1])
        if text.startswith(through) and through.startswith(before):
            return len(before), len(through)
        return self._start(index, text, before), self._end(index, text, through)

    def _start(self, index: int, text: str, before: str) -> int:
        """Where the whole stops to be the generation prompt, seen from the end of the turn before.

        A prompt that opens a block of thought goes on there; then the answer must begin at once.
        """
        messages = self.conversation.messages
        after = self._touched(index - 1, text, at_end=True) if index else None
        asked = index and self._touched(index - 1, before, messages[:index], at_end=True, asks=True)
        after, prompt = after or 0, before[asked or 0 :]
        first, last = (self._touched(index, text, at_end=at_end) for at_end in (False, True))
        if last is None:
            raise self._lost(index, "is not in what the chat template renders")
        shared = _shared(text[after:], prompt)
        start = min(after + shared, last if first is None else first)
        content = (messages[index].get("content") or "").strip()
        begins = not text[start:first].strip() if first else content.endswith(text[start:last])
        if shared == len(prompt) or begins:
            return start
        shown = text[after : last if first is None else first][-_SHOWN:]
        raise self._lost(
            index, f"begins after {shown!r}, where the generation prompt is {prompt[-_SHOWN:]!r}"
        )

    def _end(self, index: int, text: str, through: str) -> int:
        """After the end marker: what follows the turn both where it is the last and where not."""
        messages = self.conversation.messages
        last = self._touched(index, text, at_end=True)
        alone = self._touched(index, through, messages[: index + 1], at_end=True)
        if last is None or alone is None:
            raise self._lost(index, "is not in what the chat template renders")
        shared = _shared(text[last:], through[alone:])
        end = last + shared
        if alone + shared == len(through):
            return end
        # The last turn has an end token of its own, which may begin as the one of this turn.
        for place in range(end, last - 1, -1):
            for token in self._end_tokens():
                if text.startswith(token, place) and place + len(token) > end:
                    return place + len(token)
        return end

    def _end_tokens(self) -> list[str]:
        added: set[str] = set(self.tokenizer.get_added_vocab())
        return sorted(added | {self.tokenizer.eos_token or ""}, key=len, reverse=True)

    def _touched(
        self,
        index: int,
        text: str,
        messages: Sequence[Message] | None = None,
        *,
        at_end: bool,
        asks: bool = False,
    ) -> int | None:
        """Where `text` changes when message `index` begins, or ends, with a mark; None: nowhere."""
        whole = list(self.conversation.messages if messages is None else messages)
        whole[index] = _marked(whole[index], at_end)
        changed = self.of(whole, asks=asks)
        return None if changed == text else _shared(text, changed)

    def _lost(self, index: int, why: str) -> InputError:
        return InputError(
            f"{self.conversation.source}: the answer of message {index + 1} of "
            f"{len(self.conversation.messages)} {why}; learn the last answer only, or give the "
            "tokenizer another chat template"
        )


def _shared(one: str, other: str) -> int:
    """Characters with which both begin."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))


def _is_learnt(message: Message) -> bool:
    """Whether a message is an answer with something in it, which its weight does not take out."""
    if message["role"] != "assistant" or message.get("weight", 1) == 0:
        return False
    said = (message.get("content") or "").strip() or message.get("tool_calls")
    return bool(said) or any(message.get(name) for name in REASONING)


def _without_weight(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "weight"}


def _marked(message: Message, at_end: bool) -> Message:
    """The message with a mark at the end, or at the beginning, of what it says."""

    def mark(text: str) -> str:
        return text + _MARK if at_end else _MARK + text

    changed = dict(message)
    names = ["content", *(name for name in REASONING if message.get(name))]
    said = [name for name in names if isinstance(message.get(name), str) and message[name].strip()]
    calls = message.get("tool_calls")
    if at_end and calls:
        changed["tool_calls"] = [*calls[:-1], _marked_call(calls[-1], mark)]
        return changed
    for name in said[:1] if at_end else said:
        changed[name] = mark(message[name])
    if calls:
        changed["tool_calls"] = [_marked_call(calls[0], mark), *calls[1:]]
    return changed


def _marked_call(call: Mapping[str, Any], mark: Any) -> dict[str, Any]:
    function = call["function"]
    return {**call, "function": {**function, "name": mark(function["name"])}}
