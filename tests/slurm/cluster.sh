#!/usr/bin/env bash
# A real Slurm on this machine for tests: controller, munge and virtual nodes, alone in Linux namespaces. Needs root.
#
#   cluster.sh start FOLDER [NODES]      everything it writes lies in FOLDER, which is emptied first; if OWNER is set to the
#                                        number of a process, the cluster ends when that process does
#   cluster.sh run FOLDER COMMAND...     a command as on the login node, in the present folder
#   cluster.sh kill-node FOLDER I        every process of node I dies at once
#   cluster.sh start-node FOLDER I
#   cluster.sh stop FOLDER
#
# A network namespace with nothing but loopback keeps it apart from the machine and from other clusters; a pid namespace
# makes stopping one kill that leaves nobody behind; one UTS namespace for each slurmd gives each node its host name. Inside,
# FOLDER/shared is mounted on /mnt: the file system that all nodes share.
set -euo pipefail

action=$1
self=$(readlink -f "$0")
mkdir -p "$2"
folder=$(cd "$2" && pwd)
shift 2
freezer=/sys/fs/cgroup/freezer

write_settings() {
    local nodes=$1 number tracking=proctrack/linuxproc
    # Signals reach other processes under cgroup, as real clusters have it, than under linuxproc.
    if [ -w "$freezer/cgroup.procs" ]; then tracking=proctrack/cgroup; fi
    mkdir -p "$folder"/{etc,state,log,run,cgroup/freezer,shared}
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    echo "127.0.0.1 localhost controller" >"$folder/hosts"
    for number in $(seq "$nodes"); do echo "127.0.1.$number node$number" >>"$folder/hosts"; done
    # Stand-ins for GPUs: Slurm wants character devices.
    for number in 0 1; do mknod "$folder/run/gpu$number" c 1 3; done
    echo "Name=gpu File=$folder/run/gpu[0-1]" >"$folder/etc/gres.conf"
    printf 'CgroupPlugin=cgroup/v1\nCgroupMountpoint=%s\n' "$folder/cgroup" >"$folder/etc/cgroup.conf"
    # cred_expire: how long a requeued job waits; 121 s without it.
    cat >"$folder/etc/slurm.conf" <<SETTINGS
ClusterName=test
SlurmctldHost=controller(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthInfo=socket=$folder/run/munge.sock,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool.%n
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.%n.log
SlurmdParameters=config_overrides
ProctrackType=$tracking
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
ReturnToService=2
SlurmdTimeout=10
KillWait=20
MinJobAge=3600
JobRequeue=1
GresTypes=gpu
NodeName=node[1-$nodes] NodeAddr=127.0.1.[1-$nodes] NodeHostname=node[1-$nodes] Port=[7001-$((7000 + nodes))] CPUs=8 RealMemory=4096 Gres=gpu:2
PartitionName=main Nodes=ALL Default=YES MaxTime=2-00:00:00 State=UP PriorityTier=1 GraceTime=60
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=10 PreemptMode=OFF
SETTINGS
}

# The first process of the pid namespace: starts the daemons, which go into the background, and stays.
init() {
    local nodes=$1 number
    mount --bind "$folder/hosts" /etc/hosts
    mount --bind "$folder/etc" /etc/slurm
    mount --bind "$folder/shared" /mnt
    hostname controller
    ip link set lo up
    # Where 127.0.0.1 is the only address, glibc resolves no name at all (AI_ADDRCONFIG).
    for number in $(seq "$nodes"); do ip addr add "127.0.1.$number/32" dev lo; done
    if [ -w "$freezer/cgroup.procs" ]; then mount -t cgroup -o freezer none "$folder/cgroup/freezer"; fi
    munged --force --key-file="$folder/munge.key" --socket="$folder/run/munge.sock" --pid-file="$folder/run/munged.pid" \
        --seed-file="$folder/run/munged.seed" --log-file="$folder/log/munged.log"
    slurmctld
    for number in $(seq "$nodes"); do start_node "$number"; done
    until [ "$(sinfo -h -p main -o '%D %t')" = "$nodes idle" ]; do sleep 0.1; done
    touch "$folder/ready"
    while :; do sleep 3600; done # not exec: bash takes leave of the processes that it inherits
}

# shellcheck disable=SC2016 # $1 belongs to the inner shell
start_node() { unshare --uts bash -c 'hostname "node$1" && exec slurmd -N "node$1"' _ "$1"; }

inside() {
    local outer
    outer=$(cat "$folder/outer.pid")
    nsenter -t "$(pgrep -P "$outer")" --net --pid --mount --cgroup --uts "$@"
}

kill_node() {
    local names process
    names=$(readlink "/proc/$(cat "$folder/run/slurmd.node$1.pid")/ns/uts")
    for process in /proc/[0-9]*; do
        if [ "$(readlink "$process/ns/uts" 2>/dev/null)" = "$names" ]; then kill -KILL "${process#/proc/}"; fi
    done
}

stop() {
    local outer group
    outer=$(cat "$folder/outer.pid" 2>/dev/null) || return 0
    kill -KILL "$outer" 2>/dev/null || true # the namespace's first process dies with it, and the kernel kills the rest
    while kill -0 "$outer" 2>/dev/null; do sleep 0.1; done
    group=$freezer/accel_train.$outer
    if [ -d "$group" ]; then
        for _ in $(seq 50); do
            find "$group" -depth -type d -exec rmdir {} + 2>/dev/null && break
            sleep 0.1
        done
    fi
    rm -f "$folder/outer.pid" "$folder/ready"
}

case $action in
start)
    stop
    rm -rf "${folder:?}"/*
    umask 022
    write_settings "${1:-2}"
    # shellcheck disable=SC2016 # $1 and $$ belong to the inner shell
    # In a freezer group of its own, which the cgroup namespace then takes for the root.
    setsid bash -c '
        if [ -w "$1/cgroup.procs" ]; then
            mkdir -p "$1/accel_train.$$" && echo $$ >"$1/accel_train.$$/cgroup.procs"
        fi
        shift
        exec unshare --net --pid --mount --uts --cgroup --fork --kill-child --mount-proc "$@"
    ' _ "$freezer" bash "$self" init "$folder" "${1:-2}" </dev/null >"$folder/log/init.log" 2>&1 &
    echo $! >"$folder/outer.pid"
    for _ in $(seq 300); do
        if [ -e "$folder/ready" ]; then
            if [ -n "${OWNER:-}" ]; then setsid bash "$self" stop-after "$folder" "$OWNER" </dev/null &>/dev/null & fi
            exit 0
        fi
        kill -0 "$(cat "$folder/outer.pid")" 2>/dev/null || break
        sleep 0.1
    done
    tail -n 15 "$folder"/log/* >&2
    stop
    echo "Slurm did not come up; its last words are above." >&2
    exit 1
    ;;
init) init "$1" ;;
run) inside --wdns="$PWD" "$@" ;;
kill-node) inside bash "$self" kill-node-inside "$folder" "$1" ;;
kill-node-inside) kill_node "$1" ;;
start-node) inside bash "$self" start-node-inside "$folder" "$1" ;;
start-node-inside) start_node "$1" ;;
stop) stop ;;
stop-after)
    cluster=$(cat "$folder/outer.pid")
    while kill -0 "$1" 2>/dev/null; do sleep 2; done
    if [ "$(cat "$folder/outer.pid" 2>/dev/null)" = "$cluster" ]; then stop; fi
    ;;
*)
    echo "cluster.sh: no action is called $action" >&2
    exit 2
    ;;
esac
