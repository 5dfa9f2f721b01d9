"""A stand-in for SLURM on this machine: sbatch, srun, sacct and scancel as scripts in a folder for the PATH.

The folder $FAKE_SLURM has a file for each job, which is named by the job's number and holds its state, such as RUNNING.
The number is 100 or more, followed by _0, _1, ... for the jobs of an array. Each job is a process group of its own. The
number of the group is in the file with the ending .pid, so that scancel can kill all processes of the job.
"""

import os
from pathlib import Path

SCRIPTS = {
    "sbatch": r"""
id=$(( $(ls "$FAKE_SLURM" | grep -c '^[0-9]*\.batch$') + 100 ))
cp "$1" "$FAKE_SLURM/$id.batch"
last=$(sed -n 's/^#SBATCH --array=0-\([0-9]*\).*/\1/p' "$1")
for i in $(seq 0 "${last:-0}"); do
    export SLURM_JOB_ID=$(( id * 10 + i )) SLURM_NTASKS=1 SLURM_PROCID=0
    name=$id; SLURM_JOB_ID=$id
    if [ -n "$last" ]; then export SLURM_ARRAY_JOB_ID=$id SLURM_ARRAY_TASK_ID=$i; name=${id}_$i; fi
    echo RUNNING > "$FAKE_SLURM/$name"
    (
        setsid bash "$1" & echo $! > "$FAKE_SLURM/$name.pid"
        wait $! && state=COMPLETED || state=FAILED
        grep -q CANCELLED "$FAKE_SLURM/$name" || echo $state > "$FAKE_SLURM/$name"
    ) > /dev/null 2>&1 &
done
echo "Submitted batch job $id"
""",
    "srun": r"""
fix() { echo "$1" | sed "s/%A/$SLURM_ARRAY_JOB_ID/; s/%a/$SLURM_ARRAY_TASK_ID/; s/%j/$SLURM_JOB_ID/; s/%t/0/"; }
while [[ "$1" == --* ]]; do
    case "$1" in
        --output) out=$(fix "$2"); shift 2;;
        --error) err=$(fix "$2"); shift 2;;
        *) shift;;
    esac
done
exec "$@" >> "$out" 2>> "$err"
""",
    "sacct": r"""
echo 'JobID|State|NodeList'
cd "$FAKE_SLURM" && for file in $(ls | grep -E '^[0-9]+(_[0-9]+)?$'); do echo "$file|$(cat "$file")|node1"; done
""",
    "scancel": r"""
echo CANCELLED > "$FAKE_SLURM/$1"
kill -KILL -- "-$(cat "$FAKE_SLURM/$1.pid")"
""",
}


def environment(folder: Path) -> dict[str, str]:
    """Write the scripts into a folder; returns the variables of a process that is to take them for SLURM."""
    commands, jobs = folder / "bin", folder / "jobs"
    commands.mkdir(parents=True)
    jobs.mkdir()
    for name, script in SCRIPTS.items():
        (commands / name).write_text(f"#!/bin/bash\n{script.lstrip()}")
        (commands / name).chmod(0o755)
    return {"PATH": f"{commands}{os.pathsep}{os.environ['PATH']}", "FAKE_SLURM": str(jobs)}


def states(folder: Path) -> dict[str, str]:
    """The state of each job by its number."""
    return {path.name: path.read_text().strip() for path in (folder / "jobs").iterdir() if "." not in path.name}
