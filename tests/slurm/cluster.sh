#!/bin/bash
# A Slurm cluster of one node, this machine, for the tests of sweeps; Debian's package slurm-wlm has all it needs.
#   tests/slurm/cluster.sh start DIR     everything it writes is in DIR; then export SLURM_CONF=DIR/slurm.conf
#   tests/slurm/cluster.sh stop DIR
# It runs as the user who starts it, beside any other Slurm on the machine.
set -euo pipefail
PATH=$PATH:/usr/sbin
action=$1
dir=$(mkdir -p "$2" && cd "$2" && pwd)

start() {
  local host user cpus port
  host=$(hostname -s)
  user=$(id -un)
  cpus=$(nproc)
  port=$((20000 + $$ % 20000 * 2))
  mkdir -p "$dir"/{state,spool,log}
  chmod 700 "$dir"
  dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none
  chmod 600 "$dir/munge.key"
  munged --force --key-file "$dir/munge.key" --socket "$dir/munge.socket" --pid-file "$dir/munged.pid" \
    --log-file "$dir/log/munged.log" --seed-file "$dir/munge.seed" 2>>"$dir/log/munged.err"
  cat >"$dir/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$dir/munge.socket
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.pid
SlurmctldLogFile=$dir/log/slurmctld.log
SlurmdLogFile=$dir/log/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
MailProg=/bin/true
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
JobRequeue=1
KillWait=2
ReturnToService=2
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=$cpus State=UNKNOWN
PartitionName=main Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
  export SLURM_CONF=$dir/slurm.conf
  slurmctld -c
  slurmd
  for _ in $(seq 60); do
    if sinfo --noheader --format=%t 2>/dev/null | grep -q idle; then
      return
    fi
    sleep 0.5
  done
  echo "the node did not come up; see $dir/log" >&2
  return 1
}

stop() {
  local name
  for name in slurmd slurmctld munged; do
    if [[ -f $dir/$name.pid ]]; then
      kill "$(cat "$dir/$name.pid")" 2>/dev/null || true
    fi
  done
}

"$action"
