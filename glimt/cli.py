"""The `glimt` command. Flags come from the dataclasses of `config.py`, never written twice.

Each flag can also be an environment variable (GLIMT_PORT=9000) or a line of a TOML file given
with --config (`port = 9000` under `[serve]`); the command line wins, then the environment.
Heavy imports happen inside the commands, so that `glimt --help` is instant.
"""

import os
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, get_args

import cyclopts
from cyclopts import App, ArgumentCollection, Parameter

from glimt import __version__
from glimt.builtin import model as builtin
from glimt.chat.wishes import ChatWishes
from glimt.config import (
    CacheSettings,
    MediaSettings,
    ModelSettings,
    ParallelSettings,
    ServerSettings,
    Settings,
)
from glimt.config_check import drop_service_link, refuse_elsewheres, refuse_empty_keys
from glimt.errors import BadSettings, StartupError
from glimt.evaluation.wishes import EvalWishes
from glimt.planning.wishes import PlanWishes

EXIT_STARTUP_ERROR = 2
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")


def _refuse_fractions(_: App, __: tuple[str, ...], arguments: ArgumentCollection) -> None:
    """Raises BadSettings for 1.5 where a whole number belongs, which cyclopts would round."""
    problems = [
        f"{token.keyword or argument.name} {token.value}: must be a whole number"
        for argument in arguments
        if argument.hint is int or int in get_args(argument.hint)
        for token in argument.tokens
        if "." in token.value
    ]
    if problems:
        raise BadSettings("these settings cannot be used:", problems)


app = App(
    name="glimt",
    help="An inference server for the GLM-V vision-language models.",
    version=__version__,
    version_flags=["--version", "-V"],
    config=_refuse_fractions,
)

app.command("glimt.bench.cli:app", name="bench", help="Measure a server.")
app.command(
    "glimt.experts.cli:app",
    name="experts",
    help="Which experts tokens choose, and on which GPUs they lie.",
)


@app.command
def serve(
    model: str = builtin.NAME,
    /,
    *,
    config: str | None = None,
    models: Annotated[ModelSettings, Parameter(name="*")] = ModelSettings(),
    cache: Annotated[CacheSettings, Parameter(name="*")] = CacheSettings(),
    media: Annotated[MediaSettings, Parameter(name="*")] = MediaSettings(),
    parallel: Annotated[ParallelSettings, Parameter(name="*")] = ParallelSettings(),
    server: Annotated[ServerSettings, Parameter(name="*")] = ServerSettings(),
) -> int:
    """Serve MODEL with an OpenAI-compatible API.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub, e.g. zai-org/GLM-4.5V-FP8; default: the
        small model that comes with Glimt.
    config
        TOML file with any of these options under [serve].
    """
    from glimt.processes import launch

    settings = Settings(
        model=model, models=models, cache=cache, media=media, parallel=parallel, server=server
    )
    _refuse_swallowed_model(settings)
    return launch.serve(settings, _say)


def _refuse_swallowed_model(settings: Settings) -> None:
    """Raises BadSettings where a flag that takes a list has taken the model after it as well."""
    if settings.model != builtin.NAME:
        return
    for flag, values in (
        ("--api-key", settings.server.api_key),
        ("--admin-key", settings.server.admin_key),
        ("--served-model-name", settings.models.served_model_name),
    ):
        last = (values or [""])[-1]
        if len(values or ()) > 1 and (Path(last).is_dir() or _HUB_NAME.fullmatch(last)):
            raise BadSettings(
                f"{flag} takes all words that follow it, and the last, {last}, looks like the "
                f"model: write that first (glimt serve {last} {flag} …)"
            )


def settings_of(words: Sequence[str]) -> Settings:
    """What `glimt serve` with these words would do; neither files nor the environment are looked
    at. Raises BadSettings.
    """
    refuse_elsewheres(words)
    try:
        _, bound, _ = app.parse_args(["serve", *words], exit_on_error=False, print_error=False)
    except cyclopts.CycloptsError as error:
        raise BadSettings(str(error)) from None
    if bound.arguments.get("config") is not None:
        raise BadSettings("--config: give its options as flags here")
    return Settings(**{"model": builtin.NAME, **bound.arguments})


@app.command
def quantize(
    src: str,
    dst: str,
    /,
    *,
    overwrite: bool = False,
    verify: bool = False,
    verify_only: bool = False,
    json: str | None = None,
    revision: str | None = None,
    download_dir: str | None = None,
) -> int:
    """Make an FP8 checkpoint DST of the BF16 checkpoint SRC, in the published layout.

    Works through one weight file at a time, in slices: about 0.6 GB of memory whatever the model's
    size. Everything is written to DST.partial, which becomes DST at the end. After an interruption
    the same command goes on where it was.

    Parameters
    ----------
    src
        Folder of a BF16 checkpoint, or a repository of the hub, e.g. zai-org/GLM-4.6V-Flash.
    dst
        Folder to make.
    overwrite
        Replace DST if it exists (at the end), and a DST.partial begun from something else.
    verify
        Read everything back before DST appears; the error of each module, worst first.
    verify_only
        Only compare an existing DST with SRC.
    json
        File for the report of --verify or --verify-only, with all modules.
    revision
        Branch, tag or commit of the hub repository.
    download_dir
        Folder for downloads; default: the hub's cache (HF_HOME).
    """
    from glimt.quantization import command

    wishes = command.Wishes(
        source=src,
        target=dst,
        overwrite=overwrite,
        verify=verify,
        verify_only=verify_only,
        json=json,
        revision=revision,
        download_dir=download_dir,
    )
    return command.quantize(wishes, _say)


@app.command(name="eval")
def evaluate(
    model: str | None = None,
    /,
    *,
    wishes: Annotated[EvalWishes, Parameter(name="*")] = EvalWishes(),
) -> int:
    """Ask MODEL, or a server, tasks whose answers are known: accuracy by skill, with intervals.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub; default: the built-in model. With
        --base-url: its name there.
    """
    from glimt.evaluation import command

    local = None
    if command.needs_local(model, wishes):
        from glimt.evaluation.local import LocalModel
        from glimt.evaluation.teacher import compare_logits
        from glimt.processes.engine import use_spare_cores

        use_spare_cores()
        local = command.LocalParts(LocalModel, compare_logits)
    return command.evaluate(model, wishes, local, _say, _tell)


@app.command
def plan(
    model: str,
    /,
    *,
    wishes: Annotated[PlanWishes, Parameter(name="*")] = PlanWishes(),
) -> int:
    """Say what of MODEL fits on which GPUs, how fast each layout could be, and how to serve it.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub (only its config.json is read); the
        sizes of the published models are known without.
    """
    from glimt.planning import command

    read = None
    if not command.is_known(model, wishes):
        from glimt.planning.files import read_model_config

        read = read_model_config
    return command.plan(model, wishes, read, _tell)


@app.command
def chat(
    model: str | None = None,
    /,
    *,
    wishes: Annotated[ChatWishes, Parameter(name="*")] = ChatWishes(),
) -> int:
    """Chat in the terminal, with a model of this machine or with any OpenAI-compatible server.

    A local model is served for as long as the chat lasts; GLIMT_QUANTIZATION=fp8 and the like are
    flags for its server. In the chat, /help lists the commands. From a pipe, each line is a
    question, and only the answers are written.

    Parameters
    ----------
    model
        Folder of a checkpoint, or a repository of the hub; default: the small model that comes with
        Glimt. With --base-url: its name there.
    """
    from glimt.chat import command

    return command.chat(model, wishes)


def _say(line: str) -> None:
    """Progress and news, beside the results."""
    print(line, file=sys.stderr, flush=True)


def _tell(text: str) -> None:
    """Results."""
    print(text, flush=True)


def _config_file(arguments: Sequence[str]) -> str | None:
    """The file given with --config, found before parsing, since it takes part in it."""
    for index, argument in enumerate(arguments):
        if argument == "--config" and index + 1 < len(arguments):
            return arguments[index + 1]
        if argument.startswith("--config="):
            return argument.partition("=")[2]
    return None


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the `glimt` command; leaves with 2 when the settings or checkpoint are bad."""
    arguments = sys.argv[1:] if arguments is None else arguments
    sources: list[Callable[..., None]] = [cyclopts.config.Env("GLIMT_", command=False)]
    try:
        if (file := _config_file(arguments)) is not None:
            try:
                with open(file, "rb"):
                    pass
            except OSError as error:
                raise BadSettings(f"--config {file}: {error.strerror}") from None
            sources.append(cyclopts.config.Toml(file, use_commands_as_keys=True))
        app.config = (*sources, _refuse_fractions)
        if arguments and arguments[0] == "serve":
            refuse_elsewheres(arguments)
            refuse_empty_keys(os.environ)
            if (note := drop_service_link(os.environ)) is not None:
                _say(f"glimt: {note}")
        if list(arguments[:2]) == ["bench", "serve"]:
            from glimt.bench.words import settled

            arguments = [*arguments[:2], *settled(arguments[2:], _say)]
        app(list(arguments))
        sys.stdout.flush()
    except BrokenPipeError:  # `glimt … | head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for Python's own flush
        sys.exit(128 + signal.SIGPIPE)
    except StartupError as error:
        print(f"glimt: {error}", file=sys.stderr)
        sys.exit(EXIT_STARTUP_ERROR)
