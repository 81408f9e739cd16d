"""The command line's parser: commands, options, and hints for misspelt ones. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Sequence
from typing import NoReturn

from umcompress.errors import UsageError, did_you_mean, nearest

FORMATS = ("table", "md", "json")
_DEBUG_HELP = "show where in the code an error arose"
_SET_HELP = "override one value of the recipe; list indices count from 0, values are YAML; repeatable"


class Parser(argparse.ArgumentParser):
    """argparse that raises UsageError, with the nearest command or option, instead of leaving the process."""

    def error(self, message: str) -> NoReturn:
        choice = re.match(r"argument (\S+): invalid choice: '([^']*)'", message)
        unknown = re.match(r"unrecognized arguments: (.*)", message)
        do = f"see: {self.prog} --help"
        if choice and choice[1] == "COMMAND":
            raise UsageError(f"umcompress has no command {choice[2]!r}", do=did_you_mean(choice[2], COMMANDS))
        if unknown:
            close = nearest(unknown[1].split()[0].partition("=")[0], self._option_string_actions)
            do = f"did you mean {close}?" if close else do
        raise UsageError(f"{self.prog}: {message}", do=do)

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        # A subcommand leaves unknown options to the parser above, which does not know its options.
        found, rest = super().parse_known_args(args, namespace)
        if rest and self.prog != "umcompress":
            self.error(f"unrecognized arguments: {' '.join(rest)}")
        return found, rest


def _whole(text: str) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def _seed(text: str) -> int:
    if not text.isascii() or not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def _guidance(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number")
    return value


def _device(text: str) -> str:
    if not re.fullmatch(r"cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not cpu, cuda or cuda:N")
    return text


def _recipe_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipe", metavar="RECIPE", help="a YAML file, or the name of a shipped recipe")
    parser.add_argument(
        "--set", dest="overrides", action="append", default=[], metavar="PATH=VALUE", help=_SET_HELP
    )
    _machine_options(parser)


def _machine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", type=_device, help="cpu, cuda or cuda:N")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="what the weights are loaded as")


def _trust_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--trust-remote-code", action="store_true", help="run Python code that comes with the model")


def _format_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--format", choices=FORMATS, default="table", help="default: table")


def _apply(parser: argparse.ArgumentParser) -> None:
    _recipe_options(parser)
    parser.add_argument(
        "-o", "--output", metavar="FOLDER", help="the run's folder; an unfinished run resumes"
    )
    parser.add_argument(
        "--out-of-core", action="store_true", help="from file to file, without the model in memory; no scores"
    )
    parser.add_argument(
        "--skip-evaluations", action="store_true", help="calibrate on what evaluations provide, and score nothing"
    )
    parser.add_argument(
        "--link", action="store_true", help="out of core: weight files that nothing changes by reflink or hard link"
    )
    parser.add_argument(
        "--reuse", metavar="RUN", help="take the steps of another run that depend on the same things; or of RUN itself",
    )
    _format_option(parser)


def _axis_option(parser: argparse.ArgumentParser, text: str) -> None:
    parser.add_argument("--axis", dest="axes", action="append", default=[], metavar="PATH=V1,V2,...", help=text)


def _sweep(parser: argparse.ArgumentParser) -> None:
    _recipe_options(parser)
    _axis_option(parser, "values of one key, as --set names it; repeatable; default: the recipe's `sweep`")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the sweep's folder; an unfinished sweep resumes")
    _format_option(parser)


def _sensitivity(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a folder, or a run's model/ folder")
    parser.add_argument("--data", metavar="FILE", help="held-out items, a file like those to train on; default: scenes")
    parser.add_argument("--calibration", metavar="FILE", help="texts or prompts to calibrate on, where --data is given")
    parser.add_argument("--items", type=_whole, default=128, help="items of each task to score; default: 128")
    parser.add_argument("--samples", type=_whole, default=64, help="items to calibrate on; default: 64")
    parser.add_argument("--seed", type=_seed, default=0, help="draws items and noise; default: 0")
    parser.add_argument("--stack", metavar="NAME", help="a stack of blocks, or all; default: the main one")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="where it is kept; an unfinished one resumes")
    _trust_option(parser)
    _machine_options(parser)
    _format_option(parser)


def _search(parser: argparse.ArgumentParser) -> None:
    _recipe_options(parser)
    parser.add_argument(
        "--budget", dest="budgets", action="append", default=[], metavar="MEASURE=SHARE",
        help="what may be left, as a share: parameters, bytes, or active, work or seconds of a task, such as "
        "active.generation=0.5; repeatable",
    )
    parser.add_argument("--data", metavar="FILE", help="held-out items to score the choices on; default: the recipe's")
    parser.add_argument(
        "--items", type=_whole, default=128, help="items of each task to score a choice on; default: 128"
    )
    parser.add_argument(
        "--score", choices=("distance", "loss"), default="distance",
        help="what a choice costs: the distance of its outputs from the unpruned model's (default), or the rise of the "
        "loss, which takes many more items",
    )
    run_help = "recipes of the front to run: all, none, 1,3 or middle, which weighs the tasks most alike"
    parser.add_argument("--run", default="none", metavar="NUMBERS", help=run_help)
    parser.add_argument("--uniform", action="store_true", help="whole blocks go, and all that stay are cut alike")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the search's folder; an unfinished search resumes")
    _format_option(parser)


def _plan(parser: argparse.ArgumentParser) -> None:
    _recipe_options(parser)
    _axis_option(parser, "plan a sweep, as the sweep command has it; a recipe with a `sweep:` is planned as one")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="the sweep's folder: finished cells tell the time")
    _format_option(parser)


def _inspect(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name or a folder")
    parser.add_argument("--graph", metavar="PATH", help="print the traced block at this module path")
    _trust_option(parser)
    _format_option(parser)


def _evaluation_option(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--evaluation",
        dest="evaluations",
        action="append",
        metavar="NAME[:KEY=VALUE,...]",
        help="an evaluation and its options, as mme:data=PATH; default: those of the run that made it, or scenes; "
        "repeatable",
    )


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name or a folder")
    _evaluation_option(parser)
    parser.add_argument("-o", "--output", default="recipe.yaml", metavar="FILE", help="default: recipe.yaml")
    _trust_option(parser)


def _evaluate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a folder, or a run's model/ folder")
    _evaluation_option(parser)
    parser.add_argument("--seed", type=_seed, help="draws prompts and questions; default: that of the run, or 0")
    parser.add_argument("--limit", type=_whole, help="at most this many prompts and questions")
    parser.add_argument("-o", "--output", metavar="FOLDER", help="keep answers, images and report.json here")
    _trust_option(parser)
    _machine_options(parser)
    _format_option(parser)


def _compare(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("runs", nargs="+", metavar="RUN", help="a run's folder, or a report.json")
    parser.add_argument("--all", action="store_true", help="every number, every step of every run, every difference")
    parser.add_argument("--html", metavar="FILE", help="write one page with charts, tables and samples instead")
    parser.add_argument("--png", metavar="FILE", help="write the charts as a picture instead")
    _format_option(parser)


def _report(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, or a report.json")
    parser.add_argument("--html", metavar="FILE", help="write one page with tables, charts and samples instead")
    _format_option(parser)


def _export(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("run", metavar="RUN", help="a run's folder, or any model that can be compressed")
    parser.add_argument(
        "--to", required=True, metavar="LAYOUT",
        help="transformers, bagel, vllm (what it reads), vllm-omni, deci, nemo, single-file (ComfyUI), pad (as --pad)",
    )
    parser.add_argument("--pad", action="store_true", help="fill removed channels up with zeros to one width")
    parser.add_argument("-o", "--output", required=True, metavar="FOLDER", help="a new folder")
    _trust_option(parser)


def _passes(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this pass's options")
    _format_option(parser)


def _evaluations(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", metavar="NAME", help="show this evaluation's options")
    _format_option(parser)


def _schema(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--report", action="store_true", help="of report.json, in place of recipes")


def _generate(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a folder, or a run's model/ folder")
    parser.add_argument("prompt", metavar="PROMPT", help="what the image shows")
    parser.add_argument("-o", "--output", default="out.png", metavar="FILE", help="default: out.png")
    parser.add_argument("--force", action="store_true", help="replace the file if it exists")
    parser.add_argument("--seed", type=_seed, default=0, help="draws the noise; default: 0")
    parser.add_argument("--steps", type=_whole, help="denoising steps; default: the model's")
    parser.add_argument("--guidance", type=_guidance, help="text guidance; default: the model's")
    _trust_option(parser)


def _ask(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a built-in name, a folder, or a run's model/ folder")
    parser.add_argument("picture", metavar="PICTURE", help="an image file")
    parser.add_argument("question", metavar="QUESTION", help="what to ask about it")
    _trust_option(parser)


COMMANDS = {
    "init": ("write a first recipe for a model, to be changed", _init),
    "apply": ("compress a model as a recipe says, and report what it cost", _apply),
    "sweep": ("run a recipe over a grid of values, and draw what each costs", _sweep),
    "search": ("choices layer by layer that lose least within a budget", _search),
    "sensitivity": ("what each part of each layer is worth, on both tasks", _sensitivity),
    "plan": ("what a recipe would do: sizes and shapes, no weights read", _plan),
    "inspect": ("components, blocks, sites and sizes of a model", _inspect),
    "evaluate": ("score a model on understanding and generation", _evaluate),
    "compare": ("runs side by side: scores, sizes, speeds, recipes", _compare),
    "report": ("a finished run's report again, or as one HTML page", _report),
    "export": ("write a result again in the layout of another program", _export),
    "passes": ("the passes there are, or the options of one", _passes),
    "evaluations": ("the evaluations there are, or the options of one", _evaluations),
    "schema": ("JSON Schema of recipes, for editors, or of reports", _schema),
    "generate": ("draw an image from a prompt", _generate),
    "ask": ("ask a question about a picture", _ask),
}


def build() -> Parser:
    """The whole command line."""
    about = "Make unified multimodal models smaller and faster, and see what it costs."
    parser = Parser(prog="umcompress", description=about, allow_abbrev=False)
    parser.add_argument("--version", action="store_true", help="print the version")
    parser.add_argument("--debug", action="store_true", help=_DEBUG_HELP)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", parser_class=Parser)
    for name, (summary, fill) in COMMANDS.items():
        command = commands.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        fill(command)
        # Said before the command it must not be unsaid by its absence after it.
        command.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=_DEBUG_HELP)
    return parser


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The parsed command line. Raises UsageError."""
    return build().parse_args(arguments)
