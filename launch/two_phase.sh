#!/usr/bin/env bash
# Two runs on a Slurm cluster, one after the other: the second is to begin from the weights of the first.
#   launch/two_phase.sh FIRST.yaml SECOND.yaml --nodes 2 --gpus 8
# What stands after the configurations goes to `accel-train slurm` for both. SECOND.yaml names the first run in initialize_from.
# The first job may be preempted and requeued as often as it takes: it ends once, and only if it ends well the second begins.
# Prints the numbers of both jobs.
set -euo pipefail

if [ $# -lt 2 ]; then
    echo "usage: launch/two_phase.sh FIRST.yaml SECOND.yaml [options of accel-train slurm]" >&2
    exit 2
fi
first=$1 second=$2
shift 2
accel-train slurm "$second" "$@" >/dev/null # before the first is submitted: what is wrong with the second shall not wait
job=$(accel-train slurm "$first" "$@" --submit)
echo "$job"
accel-train slurm "$second" "$@" --after "$job" --submit
