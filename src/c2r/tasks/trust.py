"""What a task file can run: a definition of lm-evaluation-harness is a program unless it is held.

Its `!function` imports Python, a metric or data set that it names may be a script or a pickle, and
its templates reach any object of Python. Without trust the first are refused, and templates are
rendered in jinja's sandbox.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from c2r.errors import InputError, one_line
from c2r.text.templates import HELD_OPERATORS, template_limits

_PICKLED_DATA = ("pandas", "webdataset")


def check_task_file(path: Path) -> None:
    """Raises `InputError` if a task file, or one that it includes, asks for code to be run."""
    _check_file(path.resolve(), frozenset())


def _check_file(path: Path, seen: frozenset[Path]) -> None:
    import yaml

    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses functions; other tags are refused as unknown."""

    def refuse(_: Any, node: yaml.Node) -> None:
        raise _untrusted(path, f"!function {str(node.value)[:80]}")

    Loader.add_constructor("!function", refuse)
    if path in seen:
        raise InputError(f"{path} includes itself; correct it")
    try:
        definition = yaml.load(path.read_bytes(), Loader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"cannot read the task file {path}: {reason}; correct it") from None
    _check_entries(definition, path, seen | {path})


def _check_entries(value: Any, path: Path, seen: frozenset[Path]) -> None:
    """Checks a part of the definition in `path`, and the files that it includes."""
    if isinstance(value, list):
        for item in value:
            _check_entries(item, path, seen)
    if not isinstance(value, dict):
        return
    _check_names(value, path)
    included = value.get("include", [])
    for name in included if isinstance(included, list) else [included]:
        _check_file((path.parent / str(name)).resolve(), seen)
    for item in value.values():
        _check_entries(item, path, seen)


def _check_names(entry: dict[str, Any], path: Path) -> None:
    import lm_eval.api.metrics  # noqa: F401 - fills the registry
    from lm_eval.api.registry import metric_registry

    if "metric" in entry and (entry["metric"] not in metric_registry or entry.get("hf_evaluate")):
        raise _untrusted(path, f"metric {str(entry['metric'])[:80]}, which may be a script")
    if entry.get("dataset_path") in _PICKLED_DATA:
        raise _untrusted(path, f"data of {entry['dataset_path']}, which are pickles")


def _untrusted(path: Path, what: str) -> InputError:
    return InputError(
        f"{path} asks for {what}: that can run any code as you; read the file, then allow it with "
        "trust_task_code=True"
    )


@contextmanager
def sandboxed_templates(trusted: bool) -> Iterator[None]:
    """Renders the harness's templates in jinja's sandbox, unless they are `trusted`.

    Raises `InputError` where a template in the sandbox reaches for Python, fails, or takes more
    time or memory than a template of text does.
    """
    from jinja2 import Template
    from jinja2.exceptions import SecurityError
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from lm_eval import utils

    class Held(Template):
        """Rendered within limits."""

        def render(self, *args: Any, **kwargs: Any) -> str:
            with template_limits("a template of a task file is refused", "correct it"):
                return super().render(*args, **kwargs)

    before = utils.env
    if not trusted:
        utils.env = ImmutableSandboxedEnvironment(
            loader=before.loader, undefined=before.undefined, keep_trailing_newline=True
        )
        utils.env.filters.update(before.filters)
        utils.env.template_class = Held
        utils.env.intercepted_binops = frozenset(HELD_OPERATORS)
        utils.env.binop_table.update(HELD_OPERATORS)
    try:
        yield
    except InputError as error:
        if isinstance(error.__cause__, SecurityError):
            raise InputError(
                f"a template of a task file is refused: {one_line(error.__cause__)}; read the "
                "file, then allow it with trust_task_code=True"
            ) from None
        raise
    finally:
        utils.env = before
