"""The command line: each command parses, calls the library, prints.

A user's mistake ends in one line on stderr and exit status 2; Ctrl-C in status 130, SIGTERM in 143.
"""

from functools import partial
from typing import Annotated

import typer

from c2r.cli import (
    apply,
    bench,
    bench_cluster,
    demo,
    doctor,
    estimate,
    evaluate,
    export,
    finetune,
    import_,
    inspect,
    measure,
    optimize,
    permute,
    plan,
    presets,
    profile,
    push,
    report,
    run,
    serve_check,
    sweep,
    traffic,
)
from c2r.cli.commands import add_command
from c2r.cli.console import complain
from c2r.cli.processes import tell_torchrun, without_bars
from c2r.errors import C2RError, CommunicationError
from c2r.interrupts import interrupts

_INTERRUPTED = 130
_MOST_CHARACTERS = 2000  # of an error: it may name a file's longest word


def _show_version(is_asked: bool) -> None:
    from importlib.metadata import version

    if is_asked:
        print(f"c2r {version('c2r-moe')}")
        raise typer.Exit


app = typer.Typer(
    name="c2r",
    help="Make Mixture-of-Experts models cheaper to run across devices: profile which experts "
    "collaborate, plan lists and placement, constrain the routing, measure quality and traffic.\n\n"
    "In this order: c2r profile MODEL --text corpus.txt --out profile.safetensors; c2r plan "
    "profile.safetensors --cluster h100-8x2 --out plan.safetensors; c2r report; c2r permute. To "
    "save more, at a loss: c2r optimize, then c2r apply. c2r demo shows it on an embedded model.",
    context_settings={"help_option_names": ["-h", "--help"]},
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version."),
    ] = False,
) -> None:
    """What stands before a command."""


_add = partial(add_command, app)
_TORCHRUN = "torchrun --nproc-per-node {} -m c2r"

_add("profile", profile.profile, "MODEL --text corpus.txt --out profile.safetensors")
_add("plan", plan.plan, "profile.safetensors --ranks 4 --policy priced=0.1 --out plan.safetensors")
_add("report", report.report, "profile.safetensors plan.safetensors sweep.json --out report.html")
_add("permute", permute.permute, "MODEL --plan plan.safetensors --out permuted/")
_add(
    "optimize",
    optimize.optimize,
    "MODEL --text corpus.txt --cluster h100-8x2 --max-loss-increase 0.003",
)
_add("apply", apply.apply, "MODEL --plan plan.safetensors --out constrained/")
_add("run", run.run, "MODEL --plan plan.safetensors", _TORCHRUN.format(4))
_add("finetune", finetune.finetune, "MODEL --plan plan.safetensors --data corpus.txt --out tuned/")
_add("export", export.export, "--plan plan.safetensors --format sglang --out placement.json")
_add("serve-check", serve_check.serve_check, "constrained/ --engine vllm --python vllm/bin/python")
_add("import", import_.import_, "traces/ --format npz --num-experts 64 --out profile.safetensors")
_add("inspect", inspect.inspect, "profile.safetensors --layer 2")
_add(
    "estimate", estimate.estimate, "profile.safetensors --plan plan.safetensors --cluster h100-8x2"
)
_add("traffic", traffic.traffic, "profile.safetensors --plan plan.safetensors")
_add("sweep", sweep.sweep, "MODEL --ranks 4 --policy priced=0.03,0.1 --out sweep.json")
_add("measure", measure.measure, "MODEL --plan plan.safetensors --text corpus.txt")
_add("evaluate", evaluate.evaluate, "MODEL --plan plan.safetensors --tasks piqa --out piqa.json")
_add("push", push.push, "constrained/ owner/constrained")
_bench = typer.Typer(
    help="Measure on this machine or cluster.", no_args_is_help=True, rich_markup_mode=None
)
add_command(
    _bench, "cluster", bench_cluster.cluster, "--out mine.yaml", f"{_TORCHRUN.format(8)} bench"
)
add_command(
    _bench,
    "parallel",
    bench.parallel,
    "MODEL --policy priced=0.1",
    f"{_TORCHRUN.format(4)} bench",
)
app.add_typer(_bench, name="bench")
_add("clusters", presets.clusters, "--json")
_add("demo", demo.demo, "--out demo/")
_add("doctor", doctor.doctor, "--json")


def run_command(arguments: list[str]) -> int:
    """Runs one command and gives its exit status; without arguments, shows the help.

    Progress bars of other libraries are not shown.
    """
    without_bars()
    with interrupts() as interrupt:
        try:
            status = app(arguments or ["--help"], prog_name="c2r", standalone_mode=False)
            if status != _INTERRUPTED:  # what typer makes of an interrupt
                return status if isinstance(status, int) else 0
        except BaseException as error:  # noqa: BLE001 - libraries make an interrupt their own error
            if interrupt.number is None or isinstance(error, CommunicationError):
                return _told(error)
        complain(f"c2r: {interrupt.what}")
        return interrupt.status


def _told(error: BaseException) -> int:
    """Tells a user's mistake in one line and gives the exit status; raises what is none."""
    match error:
        case C2RError():
            line = f"c2r: {' '.join(str(error).split())[:_MOST_CHARACTERS]}"
            complain(line)
            tell_torchrun(line)
        case typer.TyperException():
            message = error.format_message().rstrip(".")
            complain(f"c2r: {message}; see `c2r --help`, or `c2r COMMAND --help`")
        case KeyboardInterrupt() | typer.Abort():
            complain("c2r: interrupted")
            return _INTERRUPTED
        case _:
            raise error
    return 2
