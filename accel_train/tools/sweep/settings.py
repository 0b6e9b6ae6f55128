"""What a sweep is: a small YAML file, or a configuration and options of the command line."""

import shlex
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError

from accel_train.config.explain import explain
from accel_train.config.load import check_config, load_config, read_mapping
from accel_train.config.schema import RunConfig, Section
from accel_train.errors import UserError
from accel_train.tools.sweep.space import Space, as_overrides, parse_space


class SweepSettings(Section):
    """The keys of a sweep's file. An option of the command line replaces the key of its name."""

    config: str
    """The configuration that is searched; it stays one that `train` takes."""
    sweep_dir: str | None = None
    """Folder of the sweep, shared by all of its workers. null: the configuration's run_dir with _sweep at its end."""
    trials: Annotated[int, Field(ge=1)] = 40
    """How many runs are started in all, over all workers, failed ones included. May be raised later."""
    score: str | None = None
    """What is maximised: a score of the validation split. null: the one that judges the configuration's runs."""
    pruner: Literal["median", "hyperband", "none"] = "median"
    """Ends trials early that are behind: `median` those below the median of the earlier ones at the same evaluation."""
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0
    """Of the search. The runs have the configuration's seed."""
    launch: str | None = None
    """What starts each trial's ranks, such as `accelerate launch --config_file launch/ddp.yaml --num_processes 2
    --main_process_port 0`. null: one process."""
    max_failures: Annotated[int, Field(ge=1)] = 5
    """A worker stops after so many failed trials in a row: then it is no longer the values that are at fault."""
    keep_checkpoints: Literal["best", "all"] = "best"
    """`best`: a trial that has ended and is not the best one loses its checkpoints; its metrics and log stay."""
    search: dict[str, str] = Field(min_length=1)
    """For each key a range, a choice, or an expression over other searched keys."""


@dataclass(frozen=True, slots=True)
class Sweep:
    """A sweep whose every part has been checked."""

    settings: SweepSettings
    base: RunConfig
    space: Space
    folder: Path


def load_sweep(path: str, overrides: list[str], options: dict[str, Any], search: list[str]) -> Sweep:
    """Reads a sweep's file, or a configuration's with what `search` says, and checks each key that is searched.

    `options` are those of the command line that were given. Raises UserError.
    """
    values = read_mapping(Path(path))
    if "search" not in values:
        values = {"config": path}
    elif "config" not in values:
        raise UserError(
            f"{path}: search: a sweep is a file of its own. Move this section there, beside `config: {path}`; so the "
            "configuration stays one that `train` takes."
        )
    values |= options
    values["search"] = _merged(values.get("search", {}), search)
    if values["search"] == {}:
        raise UserError(
            f"{path} has no section search, and --search is not given. Say what to search, for example "
            "--search 'optimizer.towers.text.lr=log 1e-6 1e-3'."
        )
    try:
        settings = SweepSettings.model_validate(values)
    except ValidationError as error:
        problems = explain(error.errors(include_url=False), values, SweepSettings)
        raise UserError("\n  ".join([f"{path}: the sweep is not right:", *problems])) from error
    space = parse_space(settings.search)
    if settings.score is not None:
        overrides = [*overrides, *as_overrides({"evaluation.best_score": settings.score})]
    base = load_config(settings.config, overrides)
    _check_launch(settings)
    _check_scores(base, settings)
    sweep = Sweep(settings, base, space, Path(settings.sweep_dir or f"{base.run_dir}_sweep"))
    _check_overrides(space, overrides)
    _check_probes(sweep)
    return sweep


def trial_config(sweep: Sweep, values: dict[str, Any], run_dir: Path) -> RunConfig:
    """The configuration of one trial, from the values of its searched keys. Raises UserError if there is no such one."""
    try:
        complete = sweep.space.with_derived(values)
    except ValueError as error:
        raise UserError(str(error)) from error
    overrides = [*as_overrides(complete), *as_overrides({"run_dir": str(run_dir)})]
    return check_config(sweep.base.model_dump(), overrides, sweep.settings.config)


def _merged(search: Any, added: list[str]) -> Any:
    """The section with what the command line adds to it or replaces. What is no mapping is left to the schema."""
    if not isinstance(search, dict):
        return search
    for line in added:
        key, equals, form = line.partition("=")
        if not equals or not key.strip() or not form.strip():
            raise UserError(
                f"--search {line!r}: it is written key=form, for example 'optimizer.momentum=uniform 0 0.9'."
            )
        search = {**search, key.strip(): form.strip()}
    return search


def _check_launch(settings: SweepSettings) -> None:
    try:
        words = shlex.split(settings.launch or "")
    except ValueError as error:
        raise UserError(f"launch: {settings.launch!r} is no command line: {error}.") from error
    if settings.launch is not None and not words:
        raise UserError(f"launch: found {settings.launch!r}; give the launcher's command, or null for one process.")
    if words and shutil.which(words[0]) is None:
        raise UserError(f"launch: there is no program {words[0]!r} on PATH. Install it, or give its whole path.")


def _check_scores(base: RunConfig, settings: SweepSettings) -> None:
    if base.data.valid_split is None:
        raise UserError("data.valid_split is null, so trials would have no score. Name a split there.")
    if settings.pruner != "none" and base.evaluation.evaluate_every is None:
        raise UserError(
            f"pruner: {settings.pruner} would be ignored, since evaluation.evaluate_every is null: there is nothing to "
            "judge a trial by before its end. Give an interval, or set pruner to none."
        )


def _check_overrides(space: Space, overrides: list[str]) -> None:
    given = {override.partition("=")[0].strip() for override in overrides}
    for key in (*space.searched, *space.derived):
        if key in given:
            raise UserError(f"{key}: it is searched, so the value on the command line would be ignored. Take one out.")


def _check_probes(sweep: Sweep) -> None:
    """Tries the middle of the search, and every key at its edges: types, ranges and rules. Raises UserError."""
    problems: dict[str, str] = {}
    for values in sweep.space.probes():
        try:
            trial_config(sweep, values, sweep.folder / "trials" / "0000")
        except UserError as error:
            for line in str(error).splitlines()[1:] or [str(error)]:
                # Of a key that isn't there, one value is enough.
                problems.setdefault(line.partition("': ")[2] or line, line.strip())
    if problems:
        raise UserError("\n  ".join(["the search leads to configurations that `train` refuses:", *problems.values()]))
