"""Errors that a user can cause, as a tree of exceptions.

    C2RError
    ├── InputError          a file, text or option that cannot be used
    │   └── ArtifactError   a profile or plan file that cannot be read or written
    ├── ModelError          a model that is not supported, or not a Mixture-of-Experts
    ├── PlanError           a plan that cannot be made as asked
    │   └── PlanMismatchError   a plan that was made for another model
    ├── RoutingError        a router that misbehaves while the model runs
    ├── TrainingError       a training that cannot continue
    └── CommunicationError  ranks that do not agree, or that stopped answering

Every message says what is wrong, with the numbers, and what to do. The command line prints it as
one line and exits with status 2. Anything else that escapes is a bug of ours.
"""

import json
import unicodedata

_MOST_CHARACTERS = 200


def one_line(value: object) -> str:
    """The first line of what a file or a library says, as a message may quote it.

    Control characters are taken out, and it is cut after 200 characters. Of what is no JSON or no
    text it does not say at which byte, for nobody looks for one.
    """
    if isinstance(value, json.JSONDecodeError):
        value = f"it is cut off or damaged: {value.msg}"
    elif isinstance(value, UnicodeDecodeError):
        value = f"it is not {value.encoding} text"
    first = str(value).strip().partition("\n")[0]
    return without_controls(first)[:_MOST_CHARACTERS].rstrip()


def without_controls(text: str) -> str:
    """`text` without the characters that a terminal obeys; lines and tabs become spaces."""
    # Surrogates that stand alone have no bytes in UTF-8, so that printing them is an error.
    parts = (" " if c in "\n\r\t" else c for c in text)
    return "".join(c for c in parts if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


class C2RError(Exception):
    """Base of every error that a user can cause."""


class InputError(C2RError):
    """A file, a text or an option cannot be used."""


class ArtifactError(InputError):
    """A profile or plan file cannot be read or written."""


class ModelError(C2RError):
    """The model is not a Mixture-of-Experts, or its family is not supported."""


class PlanError(C2RError):
    """No plan can be made as asked."""


class PlanMismatchError(PlanError):
    """The plan was made for another model."""


class RoutingError(C2RError):
    """A router misbehaves while the model runs."""


class TrainingError(C2RError):
    """A training cannot continue."""


class CommunicationError(C2RError):
    """Ranks do not agree on what they run, or one of them stopped answering."""
