#!/bin/bash
# Evaluates a selector under Slurm, one task:
#
#   sbatch --gpus=1 slurm/eval.sh --model MODEL --selector runs/mine/selector \
#       --shards shards/test --budgets 64,128,192 --out runs/mine/eval
#
# Submit from the project folder. All arguments after the script's name go to `autoselect eval`.

#SBATCH --job-name=autoselect-eval
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue

# Every variable may be set in the environment of sbatch. With --export=NONE or a list, name them:
# --export=ALL,NAME=value.
PROJECT="${PROJECT:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}"
PYTHON="${PYTHON:-$PROJECT/.venv/bin/python}"

set -u
cd "$PROJECT" || exit 1
command -v "$PYTHON" >/dev/null || {
    echo "PYTHON=$PYTHON does not exist; run 'make setup' in $PROJECT or set PYTHON" >&2
    exit 1
}
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun no longer inherits it
fi

# Leave behind what describes the shell from which the job was submitted: the step of `srun --pty`,
# inside which a further step has to share its cores, and the memory of an `salloc`, which srun
# refuses beside that of this job.
if [ -n "${SLURM_PTY_PORT:-}" ]; then
    unset SLURM_PTY_PORT "${!SLURM_CPU_BIND@}"
    export SLURM_OVERLAP=1
fi
if [ -n "${SLURM_MEM_PER_CPU:-}" ] && [ -n "${SLURM_MEM_PER_NODE:-}" ]; then
    unset SLURM_MEM_PER_CPU SLURM_MEM_PER_NODE
fi

# The task gets the environment of this shell, whatever --export said to sbatch.
export PATH
exec srun --ntasks=1 --export=ALL "$PYTHON" -u -m autoselect.cli eval "$@"
