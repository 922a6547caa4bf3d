#!/bin/bash
# A cohort on a real SLURM of one node, on this machine, with one of its jobs cancelled in the middle:
#   apt-get install slurm-wlm munge        # Debian or Ubuntu; as root, e.g. in a container
#   tests/bundlekit/cohort/slurm.sh OUT [CASES]
# Starts munged, slurmctld and slurmd with files in OUT, on ports of their own, and ends them again. The workers are jobs
# that dask-jobqueue submits. Ends with an error unless every mask is there once and equal to a plain run's.
set -eu
out=$(mkdir -p "$1" && cd "$1" && pwd)
cases=${2:-50}
python=${PYTHON:-python}
root=$(cd "$(dirname "$0")/../../.." && pwd)
host=$(hostname -s)
export SLURM_CONF=$out/slurm.conf
mkdir -p "$out"/state "$out"/spool

[ -f "$out/munge.key" ] || { dd if=/dev/urandom of="$out/munge.key" bs=1024 count=1 status=none; chmod 400 "$out/munge.key"; }
cat > "$SLURM_CONF" <<CONF
ClusterName=test
SlurmctldHost=$host
SlurmctldPort=26817
SlurmdPort=26818
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$out/munge.sock
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
KillWait=5
StateSaveLocation=$out/state
SlurmdSpoolDir=$out/spool
SlurmctldPidFile=$out/slurmctld.pid
SlurmdPidFile=$out/slurmd.pid
SlurmctldLogFile=$out/slurmctld.log
SlurmdLogFile=$out/slurmd.log
NodeName=$host CPUs=2 RealMemory=4000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
CONF

end() {
    scancel --user "$(id -un)" 2>/dev/null || true
    for name in slurmd slurmctld munged; do
        [ -f "$out/$name.pid" ] && kill "$(cat "$out/$name.pid")" 2>/dev/null || true
    done
}
trap end EXIT
munged --force --key-file "$out/munge.key" --socket "$out/munge.sock" --pid-file "$out/munged.pid" \
    --log-file "$out/munged.log" --seed-file "$out/munge.seed"
slurmctld
slurmd
for _ in $(seq 30); do
    sinfo --noheader --format %T 2>/dev/null | grep -q idle && break
    sleep 1
done
sinfo
cd "$root"
"$python" - "$out" "$cases" <<'PLAIN'
import subprocess, sys
from pathlib import Path
from tests.bundlekit.cohort.killing import BUNDLE, make_cases, plain_run, write_model

out = Path(sys.argv[1])
make_cases(out / "data", int(sys.argv[2]))
write_model(out / "model")
plain_run(out / "data", out / "model", out / "plain")
PLAIN
rm -rf "$out/out"
( # cancel the first job that computes, when a third of the cases is done
    until [ "$(ls "$out/out/records" 2>/dev/null | wc -l)" -ge $((cases / 3)) ]; do sleep 1; done
    job=$(squeue --noheader --states RUNNING --format %i | head -1)
    echo "cancelling job $job of: $(squeue --noheader --format '%i %T' | tr '\n' ';')"
    scancel "$job"
) &
"$python" -m tools cohort brats_resunet "$out/data" "$out/out" --ckpt_dir "$out/model" --runtime torch \
    --cluster slurm --jobs 2 --threads 1 --memory 1800MB --walltime 00:30:00 --queue main
wait %1 2>/dev/null || true
squeue
"$python" - "$out" <<'CHECK'
import sys
from pathlib import Path
from tests.bundlekit.cohort.killing import check

out = Path(sys.argv[1])
names = sorted(folder.name for folder in (out / "data").iterdir())
check(out / "out", out / "plain", names)
print(f"{len(names)} masks, each there once and equal to the plain run's")
CHECK
