"""How an exception is told: in one line, without the secrets that it quotes, and with what it came from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Final

__all__ = ["behind", "chain", "conceal", "conceal_notes", "describe", "message_of", "notes_of"]

_CONCEALED: Final = "__agenthelm_concealed__"
_CONCEALED_NOTES: Final = "__agenthelm_concealed_notes__"
_LOOPS: Final = ("asyncio", "trio")
_CANCELLATIONS: Final = ("CancelledError", "Cancelled")
_DEADLINE: Final = ("deadline exceeded", "due to deadline")
_SHOWN: Final = 3
"""How much of a group is told."""


def describe(error: BaseException) -> str:
    """One line that names an exception's type even when its message is empty, and what is in a group.

    A cancellation is just called that.
    """
    if type(error).__module__.partition(".")[0] in _LOOPS and type(error).__name__ in _CANCELLATIONS:
        # Its own words are an event loop's: which scope, and which task with which frames.
        return "cancelled: a deadline passed" if (_text(error) or "").endswith(_DEADLINE) else "cancelled"
    text = message_of(error)
    text = "(its message can't be read)" if text is None else text.strip().replace("\n", " ")
    told = [type(error).__name__, text] if text else [type(error).__name__]
    if isinstance(error, BaseExceptionGroup):
        inside = [describe(inner) for inner in error.exceptions[:_SHOWN]]
        told.append("; ".join([*inside, "..."] if len(error.exceptions) > _SHOWN else inside))
    return ": ".join(told)


def message_of(error: BaseException) -> str | None:
    """An exception's message as it may be stored and shown; None when it can't be read.

    What was concealed stays so in exceptions that quote it: those that were raised from it, or while it was handled.
    """
    concealed = vars(error).get(_CONCEALED)
    if concealed is not None:
        return str(concealed)
    text = _text(error)
    for inner in behind(error) if text else ():
        words, shown = _text(inner), vars(inner).get(_CONCEALED)
        if words and shown is not None:
            assert text is not None
            text = text.replace(words, shown)
    return text


def notes_of(error: BaseException) -> list[str]:
    """An exception's notes as they may be stored and shown, one line each."""
    concealed: Sequence[str] = vars(error).get(_CONCEALED_NOTES, ())
    notes = [" ".join(str(note).split()) for note in getattr(error, "__notes__", ())]
    return [*concealed, *notes[len(concealed) :]]


def conceal(error: BaseException, text: str) -> None:
    """Let an exception be told in these words wherever its own would be stored or shown, because a secret is in them."""
    BaseException.__setattr__(error, _CONCEALED, text)  # also where the exception's class lets nobody set attributes


def conceal_notes(error: BaseException, notes: Sequence[str]) -> None:
    """As `conceal`, for the notes that an exception has so far."""
    BaseException.__setattr__(error, _CONCEALED_NOTES, tuple(notes))


def chain(error: BaseException, *, handled: bool = True) -> Iterator[BaseException]:
    """An exception and those before it, as a traceback tells them; each once, also where one was raised from itself.

    Args:
        error: The exception.
        handled: Whether those count that were only being handled when the next one was raised.
    """
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        yield link
        link = link.__cause__ or (link.__context__ if handled and not link.__suppress_context__ else None)


def behind(error: BaseException) -> list[BaseException]:
    """The exceptions that this one was raised from, while handling, or as a group of."""
    found: list[BaseException] = [error]
    for one in found:
        inside = one.exceptions if isinstance(one, BaseExceptionGroup) else ()
        for other in (one.__cause__, one.__context__, *inside):
            if other is not None and not any(other is known for known in found):
                found.append(other)
    return found[1:]


def _text(error: BaseException) -> str | None:
    try:
        return str(error)
    except Exception:  # noqa: BLE001 - somebody else's __str__; the type is there all the same
        return None
