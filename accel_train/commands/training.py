"""`train`, and a step of a run computed again."""

import json
import os
import sys
from contextlib import redirect_stdout

from accel_train.commands.arguments import OVERRIDES_HELP, add_config, load, make_parser, positive
from accel_train.config.faults import read_faults


def train(argv: list[str]) -> None:
    """Trains a model. Goes on by itself from the newest valid checkpoint in run_dir.

    Exit codes: 0 done, 1 training can't go on, 2 bad configuration or data, 75 stopped by a signal with a checkpoint
    written (start it again).
    """
    parser = make_parser(train, "accel-train train configs/quickstart.yaml max_steps=20 num_epochs=null")
    add_config(parser)
    parser.add_argument("--fresh", action="store_true", help="start anew; refuses a run_dir that holds a run")
    parser.add_argument("--inject", metavar="FAULTS", help="make it fail, to see what holds (docs/reliability.md)")
    parser.add_argument("--json", action="store_true", help="print the last scores as JSON; the log goes to stderr")
    arguments = parser.parse_intermixed_args(argv)
    faults = () if arguments.inject is None else read_faults(arguments.inject)
    config = load(arguments)

    from accel_train.train import train as run

    if not arguments.json:
        run(config, fresh=arguments.fresh, inject=faults)
        return
    with redirect_stdout(sys.stderr):
        scores = run(config, fresh=arguments.fresh, inject=faults)
    if os.environ.get("RANK", "0") == "0":
        print(json.dumps({"run_dir": config.run_dir, "scores": scores}, indent=1))


def replay(argv: list[str]) -> None:
    """Computes one step again on one process, and names the first module whose output is not finite.

    Trains in a scratch folder from the checkpoint before that step; the run's own folder is only read. Exit code 1 if the
    step does not go as nonfinite/step_XXXXXXXX.json of the run says.
    """
    parser = make_parser(replay, "accel-train replay runs/quickstart --step 1234")
    parser.add_argument("run", metavar="RUN", help="run folder")
    parser.add_argument("overrides", metavar="section.key=value", nargs="*", default=[], help=OVERRIDES_HELP)
    parser.add_argument(
        "--step", type=positive, metavar="N", required=True, help="the step, counted from 1 as in metrics.jsonl"
    )
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    arguments = parser.parse_intermixed_args(argv)

    from accel_train.tools.replay import replay as run

    run(arguments.run, step=arguments.step, overrides=arguments.overrides, as_json=arguments.json)
