"""`accel-train plan`: shows what a run would do, what fits, and what more GPUs would bring."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from accel_train.config.schema import RunConfig
from accel_train.engine.launch import read_launch, threads_per_rank
from accel_train.errors import UserError
from accel_train.tools.calibration.record import HOW, Rates, rates_key, read_calibration
from accel_train.tools.plan.fits import Fit, GraphsThatFit, fits, graphs_that_fit
from accel_train.tools.plan.more_tables import print_fits, print_scaling, print_step_time
from accel_train.tools.plan.run_plan import RunPlan, make_plan
from accel_train.tools.plan.scale import ScaleQuestion, Scaling, given_rates, scaling
from accel_train.tools.plan.step_time import StepTime, seconds_per_sample, step_time, with_data
from accel_train.tools.plan.tables import as_dict, print_plan, print_remarks
from accel_train.writable import check_writable

PICTURES = (".png", ".svg", ".pdf")


def plan(
    config: RunConfig,
    *,
    as_json: bool = False,
    picture: str | None = None,
    world_size: int | None = None,
    fit: int | None = None,
    scale: ScaleQuestion | None = None,
) -> None:
    """Prints the plan, for `world_size` ranks or as launched.

    With `fit`, a device's bytes, what fits into it; with `scale`, what more GPUs would bring; one of the two at most.
    `picture` is a file to draw to: the learning rates, or what fits, or the scaling.
    """
    if read_launch(config).rank != 0:
        return
    if picture is not None:
        if Path(picture).suffix not in PICTURES:
            raise UserError(f"--picture: {picture} must end in {', '.join(PICTURES)}.")
        check_writable(Path(picture), "--picture")
    run_plan = make_plan(config, world_size=world_size)
    seconds = _step_time(run_plan)
    first = run_plan.model, run_plan.groups[0], run_plan.task
    fitting = None if fit is None else fits(*first, run_plan.split, fit)
    # A step whose graphs are all light keeps them by itself, which its dry run knows.
    graphs = None if fit is None else graphs_that_fit(*first, run_plan.dry.split, fit)
    scaled = None if scale is None else _scaling(run_plan, scale)
    if as_json:
        print(json.dumps(_as_dict(run_plan, seconds, fitting, graphs, scaled), indent=1, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        print_plan(run_plan, console)
        print_step_time(run_plan, seconds, console)
        if fitting is not None and fit is not None:
            print_fits(fitting, graphs, fit, config, run_plan.split, console)
        if scaled is not None:
            print_scaling(scaled, run_plan.split.engine, console)
        print_remarks(run_plan, console)
    if picture is not None:
        _draw(run_plan, fitting, fit, scaled, picture)


def _step_time(run_plan: RunPlan) -> StepTime | str:
    """The estimate, or in words why there is none."""
    config = run_plan.config
    on_gpu = torch.cuda.is_available()
    try:
        calibration = read_calibration()
        ranks = run_plan.split.world_size
        key = rates_key("cuda" if on_gpu else "cpu", ranks, threads_per_rank(config, ranks))
        rates = calibration.rates.get(key)
        if rates is None:
            found = ", ".join(calibration.rates)
            return f"this host was measured as {found}, and not as {key}. {HOW}."
        found_time = step_time(run_plan.dry, calibration, rates, on_gpu=on_gpu)
        cpus = None if on_gpu else len(os.sched_getaffinity(0))
        reading = seconds_per_sample(run_plan.task)
        return with_data(found_time, run_plan.dry, reading, config.data.num_workers, cpus)
    except UserError as missing:
        return str(missing)


def _scaling(run_plan: RunPlan, question: ScaleQuestion) -> Scaling:
    rates: Rates | None
    if question.flops_per_second is not None and question.bytes_per_second is not None:
        rates = given_rates(question.flops_per_second, question.bytes_per_second)
    else:
        key = rates_key("cuda" if torch.cuda.is_available() else "cpu", ranks=1)
        rates = read_calibration().rates.get(key)
        if rates is None:
            raise UserError(
                f"this host was not measured as {key}. {HOW}. Or describe a GPU: --tflops, --memory-bandwidth."
            )
    return scaling(
        run_plan.model, run_plan.groups[0], run_plan.task, run_plan.split, rates, question.links, question.most
    )


def _as_dict(
    run_plan: RunPlan,
    seconds: StepTime | str,
    fitting: list[Fit] | None,
    graphs: GraphsThatFit | None,
    scaled: Scaling | None,
) -> dict[str, Any]:
    found = as_dict(run_plan)
    if isinstance(seconds, str):
        found |= {"step_time": None, "step_time_missing": seconds}
    else:
        found["step_time"] = asdict(seconds) | {"seconds": seconds.seconds}
    if fitting is not None:
        found["fits"] = [asdict(one) for one in fitting]
        found["kept_graphs_that_fit"] = None if graphs is None else asdict(graphs)
    if scaled is not None:
        points = {
            engine: [asdict(point) | {"seconds": point.seconds} for point in points]
            for engine, points in scaled.points.items()
        }
        first = {engine: scaled.bottleneck(engine) for engine in scaled.points}
        found["scale"] = {"links": asdict(scaled.links), "points": points, "first_bottleneck": first}
    return found


def _draw(run_plan: RunPlan, fitting: list[Fit] | None, limit: int | None, scaled: Scaling | None, path: str) -> None:
    title = Path(run_plan.config.run_dir).name
    if scaled is not None:
        from accel_train.tools.plan.pictures import draw_scaling

        draw_scaling(scaled, run_plan.split.engine, title, path)
    elif fitting is not None and limit is not None:
        from accel_train.tools.plan.pictures import draw_fits

        draw_fits(fitting, limit, title, path)
    else:
        from accel_train.tools.lr_picture import draw_learning_rates

        draw_learning_rates(run_plan.rates(), path)
