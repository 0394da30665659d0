"""The command line: each command parses, calls the library, prints.

A user's mistake ends in one line on stderr and exit status 2; Ctrl-C in status 130.
"""

import sys

import typer

from c2r.cli import (
    apply,
    bench,
    demo,
    doctor,
    evaluate,
    export,
    finetune,
    import_,
    inspect,
    measure,
    permute,
    plan,
    profile,
    report,
    run,
    serve_check,
    sweep,
    traffic,
)
from c2r.cli.console import note
from c2r.errors import C2RError

app = typer.Typer(
    name="c2r",
    help="Make Mixture-of-Experts models cheaper to run across devices: profile which experts "
    "collaborate, plan lists and placement, constrain the routing, measure quality and traffic.\n\n"
    "The road: c2r profile MODEL --out p.safetensors, then c2r plan p.safetensors --ranks 4 --out "
    "plan.safetensors, then c2r traffic and c2r apply. c2r demo walks it on an embedded model.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.command("profile")(profile.profile)
app.command("import")(import_.import_)
app.command("inspect")(inspect.inspect)
app.command("plan")(plan.plan)
app.command("sweep")(sweep.sweep)
app.command("traffic")(traffic.traffic)
app.command("apply")(apply.apply)
app.command("finetune")(finetune.finetune)
app.command("run")(run.run)
app.command("measure")(measure.measure)
app.command("evaluate")(evaluate.evaluate)
app.command("permute")(permute.permute)
app.command("export")(export.export)
app.command("serve-check")(serve_check.serve_check)
app.command("report")(report.report)
app.add_typer(bench.app, name="bench")
app.command("demo")(demo.demo)
app.command("doctor")(doctor.doctor)


def main() -> None:
    """Runs the command that `sys.argv` names."""
    sys.exit(run_command(sys.argv[1:]))


def run_command(arguments: list[str]) -> int:
    """Runs one command and gives its exit status; without arguments, shows the help."""
    try:
        status = app(arguments or ["--help"], prog_name="c2r", standalone_mode=False)
    except C2RError as error:
        note(f"c2r: {' '.join(str(error).split())}")
        return 2
    except typer.TyperException as error:
        note(f"c2r: {error.format_message()} See `c2r --help`, or `c2r COMMAND --help`.")
        return 2
    except (KeyboardInterrupt, typer.Abort):
        note("c2r: interrupted")
        return 130
    return status if isinstance(status, int) else 0
