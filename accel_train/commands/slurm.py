"""`slurm`: a batch script that fits, printed or submitted."""

import re

from accel_train.commands.arguments import add_config, load, make_parser, positive
from accel_train.errors import UserError


def slurm(argv: list[str]) -> None:
    """Prints a batch script that trains on a Slurm cluster, or submits it with --submit.

    Checks first that the configuration is right, that the ranks divide the batch, that the partition exists and allows the
    time, and that run_dir can be written and is no folder of one node alone. With --submit the job's number is printed.
    """
    parser = make_parser(slurm, "accel-train slurm configs/chinese_clip_muge.yaml --nodes 2 --gpus 8 --submit")
    add_config(parser)
    parser.add_argument("--nodes", type=positive, default=1, metavar="N", help="nodes (default: 1)")
    kind = parser.add_mutually_exclusive_group(required=True)
    kind.add_argument("--gpus", type=positive, metavar="N", help="GPUs on each node, with a rank for each")
    kind.add_argument("--cpu-ranks", type=positive, metavar="N", help="ranks on each node, on CPU cores without GPUs")
    parser.add_argument(
        "--cpus",
        type=positive,
        metavar="N",
        help="CPU cores on each node (default: for each rank 1 + data.num_workers)",
    )
    parser.add_argument("--time", default="1-00:00:00", metavar="T", help="time limit (default: 1-00:00:00, a day)")
    parser.add_argument("--partition", metavar="P", help="partition (default: the cluster's)")
    parser.add_argument("--account", metavar="A", help="account to charge (default: yours)")
    parser.add_argument("--job-name", metavar="NAME", help="name of the job (default: the last part of run_dir)")
    parser.add_argument("--after", metavar="JOB", help="begin after this job, if it ends well; else never")
    parser.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="another option of sbatch, such as qos=high"
    )
    parser.add_argument("--submit", action="store_true", help="submit it and print the job's number")
    parser.add_argument("--json", action="store_true", help="print JSON: job, ranks, script, warnings")
    arguments = parser.parse_intermixed_args(argv)
    if arguments.after is not None and re.fullmatch(r"\d+", arguments.after, re.ASCII) is None:
        raise UserError(f"--after: found {arguments.after!r}; it is the number of a job.")
    config = load(arguments)

    from accel_train.tools.slurm.job import Asked
    from accel_train.tools.slurm.job import slurm as run

    asked = Asked(
        nodes=arguments.nodes,
        gpus=arguments.gpus,
        cpu_ranks=arguments.cpu_ranks,
        cpus=arguments.cpus,
        time=arguments.time,
        partition=arguments.partition,
        account=arguments.account,
        job_name=arguments.job_name,
        after=arguments.after,
        options=[option.removeprefix("--") for option in arguments.sbatch],
    )
    run(config, arguments.config, arguments.overrides, asked, submitting=arguments.submit, as_json=arguments.json)
