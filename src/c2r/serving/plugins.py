"""What serving engines call in each of their processes: entry points of the package.

Engines log an error of a plugin, and then serve the model without it. A model that was to be
constrained would answer unconstrained; so a plugin that cannot be put in ends the process.
"""

from importlib import import_module


def vllm() -> None:
    """Makes vLLM run models under their plans. Raises `SystemExit` where that cannot be done."""
    _register("vllm", "VLLM_PLUGINS")


def sglang() -> None:
    """Makes SGLang run models under their plans. Raises `SystemExit` where that cannot be done."""
    _register("sglang", "SGLANG_PLUGINS")


def _register(engine: str, variable: str) -> None:
    try:
        from c2r.errors import C2RError
    except ImportError as error:
        raise _end(error, variable) from error
    try:
        import_module(f"c2r.serving.{engine}").register()
    except (ImportError, AttributeError, C2RError) as error:
        raise _end(error, variable) from error


def _end(error: Exception, variable: str) -> SystemExit:
    return SystemExit(
        f"c2r: {error}. Without c2r the model would be served unconstrained; to do that, name the "
        f"other plugins in {variable}, or 'none'"
    )
