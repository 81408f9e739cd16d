"""The command line: parse, delegate, print, exit. Each command imports the heavy modules that it needs."""

from __future__ import annotations

import os
import signal
import sys
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from umcompress import processes
from umcompress.cli import parser as cli_parser
from umcompress.cli.refusals import REFUSALS
from umcompress.errors import UmcompressError, UsageError

if TYPE_CHECKING:
    from umcompress.documents.base import Document
    from umcompress.report.table import View

INTERRUPTED, TERMINATED = 130, 143


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0 (done), 1 (a pass, evaluation or check failed), 2 (wrong usage), 130, 143."""
    with _terminable():
        return _main(arguments)


class _Terminated(KeyboardInterrupt):
    """SIGTERM: from here on as Ctrl-C, so that files are closed, processes ended and nothing is left half."""


@contextmanager
def _terminable() -> Iterator[None]:
    def end(*_: object) -> None:
        raise _Terminated

    try:
        before = signal.signal(signal.SIGTERM, end)
    except ValueError:  # not in the main thread, where signals are somebody else's
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _main(arguments: Sequence[str] | None) -> int:
    options = None
    try:
        options = cli_parser.parse(arguments)
        if options.version:
            return _version()
        if options.command is None:
            cli_parser.build().print_help(sys.stderr)
            return UsageError.exit_code
        try:
            code = _COMMANDS[options.command](options)
        except SystemExit as error:
            if isinstance(error.__context__, BrokenPipeError):
                raise  # rich leaves so when the reader (`| head`) has gone
            raise _ended(error) from error
        sys.stdout.flush()
        return code
    except UmcompressError as error:
        # Of several processes all find the same; the first says so.
        if processes.rank() == 0:
            if options is not None and options.debug:
                import traceback

                traceback.print_exception(error)
            print(f"umcompress: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as error:
        print("umcompress: interrupted; the same command resumes where it stopped", file=sys.stderr)
        return TERMINATED if isinstance(error, _Terminated) else INTERRUPTED
    except BrokenPipeError:
        # The reader (`| head`) has gone. Without this, Python complains again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        if (do := REFUSALS.get(error.errno or 0)) is None:
            raise
        print(f"umcompress: use {error.filename2 or error.filename or 'the disk'}\n  found: {error.strerror}\n"
              f"  do: {do} and give the same command again; the steps that are done are kept", file=sys.stderr)
        return 1


def _ended(error: SystemExit) -> UmcompressError:
    """Code that is not ours (a pass of the user's, a library) leaves the process: nothing here does."""
    import traceback

    last = traceback.extract_tb(error.__traceback__)[-1]
    return UmcompressError(
        "run the command to its end", f"sys.exit({error.code!r}) in {last.filename}, line {last.lineno}",
        "take it out, or have it raise an error that says what is wrong",
    )  # fmt: skip


def _version() -> int:
    from importlib.metadata import version

    print(f"umcompress {version('umcompress')}")
    return 0


def _print(document: Document, view: View, style: str) -> None:
    if style == "json":
        import json

        print(json.dumps(document.json_values(), indent=2, ensure_ascii=False))
    elif style == "md":
        from umcompress.report import markdown

        print(markdown.text(view), end="")
    else:
        from umcompress.report import terminal

        terminal.show(view)


def _init(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.cli.init import start
    from umcompress.report import terminal
    from umcompress.report.plan_view import starter_view

    output = Path(options.output)
    found, starter = start(options.model, options.evaluations or ["scenes"], output, options.trust_remote_code)
    terminal.show(starter_view(found, starter, output))
    return 0


def _apply(options: Namespace) -> int:
    from umcompress.report.report_view import report_view
    from umcompress.run.apply import apply

    report, folder = apply(
        options.recipe, options.output, options.overrides, options.device, options.dtype, options.out_of_core,
        options.reuse, options.skip_evaluations, options.link,
    )
    if processes.rank() == 0:
        _print(report, report_view(report, str(folder)), options.format)
    processes.stop()
    return 1 if report.stopped else 0


def _sweep(options: Namespace) -> int:
    from umcompress.report.sweep_view import sweep_view
    from umcompress.run.sweep import sweep

    result, folder = sweep(
        options.recipe, options.axes, options.output, options.overrides, options.device, options.dtype
    )
    if processes.rank() == 0:
        from umcompress.report.sweep_page import write_pictures

        written = write_pictures(result, folder)
        _print(result, sweep_view(result, str(folder), written), options.format)
    processes.stop()
    return 1 if any(cell.failed or cell.stopped for cell in result.cells) else 0


def _search(options: Namespace) -> int:
    from umcompress.report.search_view import search_view
    from umcompress.run.search import Asked, search

    found, folder = search(Asked(**{name: getattr(options, name) for name in Asked.__annotations__}))
    if processes.rank() == 0:
        from umcompress.report.search_page import write_pictures

        written = write_pictures(found, folder)
        _print(found, search_view(found, str(folder), written), options.format)
    processes.stop()
    return 0


def _sensitivity(options: Namespace) -> int:
    from umcompress.report.sensitivity_view import sensitivity_view
    from umcompress.run.sensitivity import Asked, sensitivity

    asked = Asked(**{name: getattr(options, name) for name in Asked.__annotations__})
    found, folder = sensitivity(asked, options.output)
    if processes.rank() == 0:
        from umcompress.report.sensitivity_page import write_pictures

        written = write_pictures(found, folder)
        _print(found, sensitivity_view(found, str(folder), written), options.format)
    processes.stop()
    return 0


def _plan(options: Namespace) -> int:
    from umcompress.plan.command import has_grid
    from umcompress.plan.command import plan as plan_command
    from umcompress.report.plan_view import plan_view

    settings = [part for override in options.overrides for part in ("--set", override)]
    for name in ("device", "dtype"):
        settings += [f"--{name}", value] if (value := getattr(options, name)) is not None else []
    if options.axes or has_grid(options.recipe, options.overrides):
        return _plan_sweep(options, settings)
    if options.output:
        raise UsageError(f"plan -o {options.output}", "the recipe has no grid", "leave -o out: it is for sweeps")
    plan = plan_command(options.recipe, options.overrides, options.device, options.dtype)
    _print(plan, plan_view(plan, options.recipe, settings), options.format)
    return UsageError.exit_code if plan.problems or any(step.problem for step in plan.steps) else 0


def _plan_sweep(options: Namespace, settings: list[str]) -> int:
    from umcompress.plan.sweep import plan_sweep
    from umcompress.report.sweep_view import sweep_plan_view

    plan = plan_sweep(
        options.recipe, options.axes, options.overrides, options.device, options.dtype, options.output
    )
    settings += [part for axis in options.axes for part in ("--axis", axis)]
    settings += ["-o", options.output] if options.output else []
    _print(plan, sweep_plan_view(plan, options.recipe, settings), options.format)
    return UsageError.exit_code if any(cell.problem for cell in plan.cells) else 0


def _inspect(options: Namespace) -> int:
    from umcompress.plan.command import inspect
    from umcompress.report.plan_view import inspection_view

    found = inspect(options.model, options.graph, options.trust_remote_code)
    _print(found, inspection_view(found), options.format)
    return 0


def _evaluate(options: Namespace) -> int:
    from umcompress.report.report_view import evaluation_view
    from umcompress.run.evaluate import evaluate

    report = evaluate(
        options.model,
        options.evaluations,
        seed=options.seed,
        limit=options.limit,
        output=options.output,
        device=options.device,
        dtype=options.dtype,
        trust_remote_code=options.trust_remote_code,
    )
    if processes.rank() == 0:
        _print(report, evaluation_view(report), options.format)
    processes.stop()
    return 0


def _compare(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.documents.report import read_report
    from umcompress.report.compare import compare
    from umcompress.report.compare_view import compare_view

    comparison = compare([(name, read_report(Path(name))) for name in options.runs])
    if options.html or options.png:
        from umcompress.report.compare_page import write_page, write_picture

        for file, write in ((options.html, write_page), (options.png, write_picture)):
            if file:
                print(write(comparison, Path(file)))
        return 0
    _print(comparison, compare_view(comparison, options.all or options.format == "md"), options.format)
    return 0


def _report(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.documents.report import read_report
    from umcompress.report.report_view import evaluation_view, report_view

    run = Path(options.run)
    report = read_report(run)
    folder = run if run.is_dir() else run.parent
    if options.html:
        from umcompress.report.html import write_page

        print(write_page(report, folder, Path(options.html)))
        return 0
    _print(report, report_view(report, str(folder)) if report.recipe else evaluation_view(report), options.format)
    return 0


def _export(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.run.export import export

    for line in export(options.run, options.to, Path(options.output), options.trust_remote_code, options.pad):
        print(line)
    return 0


def _left_out(error: UmcompressError) -> None:
    """A plug-in that cannot be used is no reason to show none, and none to be silent."""
    print(f"umcompress: left out: {error}", file=sys.stderr)


def _passes(options: Namespace) -> int:
    from umcompress.extend.registry import all_passes, one_pass
    from umcompress.report.passes_view import describe_pass, list_passes, pass_view, passes_view

    if options.name:
        one = describe_pass(options.name, one_pass(options.name))
        _print(one, pass_view(one), options.format)
    else:
        found = list_passes(all_passes(_left_out))
        _print(found, passes_view(found), options.format)
    return 0


def _evaluations(options: Namespace) -> int:
    from umcompress.extend.registry import all_evaluations, one_evaluation
    from umcompress.report.passes_view import (
        describe_evaluation,
        evaluations_view,
        list_evaluations,
        one_evaluation_view,
    )

    if options.name:
        one = describe_evaluation(options.name, one_evaluation(options.name))
        _print(one, one_evaluation_view(one), options.format)
    else:
        found = list_evaluations(all_evaluations(_left_out))
        _print(found, evaluations_view(found), options.format)
    return 0


def _schema(options: Namespace) -> int:
    import json

    if options.report:
        from umcompress.documents.report import report_schema

        print(json.dumps(report_schema(), indent=2))
        return 0
    from umcompress.documents.gate import Gate
    from umcompress.documents.schema import recipe_schema
    from umcompress.extend.registry import all_evaluations, all_passes
    from umcompress.recipe.recipe import RecipeHead

    passes, evaluations = all_passes(_left_out), all_evaluations(_left_out)
    print(json.dumps(recipe_schema(RecipeHead, Gate, passes, evaluations), indent=2))
    return 0


def _generate(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.run.ask import generate

    written = generate(
        options.model, options.prompt, Path(options.output), seed=options.seed, steps=options.steps,
        guidance=options.guidance, force=options.force, trust_remote_code=options.trust_remote_code,
    )  # fmt: skip
    print(written)
    return 0


def _ask(options: Namespace) -> int:
    from pathlib import Path

    from umcompress.run.ask import ask

    print(ask(options.model, Path(options.picture), options.question, options.trust_remote_code))
    return 0


_COMMANDS = {
    "init": _init,
    "apply": _apply,
    "sweep": _sweep,
    "search": _search,
    "sensitivity": _sensitivity,
    "plan": _plan,
    "inspect": _inspect,
    "evaluate": _evaluate,
    "compare": _compare,
    "report": _report,
    "export": _export,
    "passes": _passes,
    "evaluations": _evaluations,
    "schema": _schema,
    "generate": _generate,
    "ask": _ask,
}

if __name__ == "__main__":
    sys.exit(main())
