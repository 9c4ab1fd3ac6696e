#!/bin/bash
# Trains one selector per value of one setting, as a job array:
#
#   SWEEP_KEY=gate.token_budget SWEEP_VALUES="8 16 32 64" sbatch --array=0-3 slurm/sweep.sh
#   SWEEP_KEY=seed SWEEP_VALUES="0 1 2" sbatch --array=0-2 --nodes=2 slurm/sweep.sh --config run.yaml
#
# The first trains on the reference data, the second as run.yaml says.
# Submit from the project folder. Every array task is a job with its own output folder and log. It
# behaves like slurm/train.sh: it saves a checkpoint before the time limit, is requeued, and resumes.

#SBATCH --job-name=autoselect-sweep
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%A-%a.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue
#SBATCH --array=0-3

# Every variable may be set in the environment of sbatch, unless --export keeps that out of the job.
PROJECT="${PROJECT:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}"
if [ -z "${SWEEP_KEY:-}" ] && [[ "${SLURM_EXPORT_ENV:-ALL}" != ALL* ]]; then
    echo "--export=$SLURM_EXPORT_ENV keeps SWEEP_KEY and SWEEP_VALUES out of the job; name them:" \
        "sbatch --export='ALL,SWEEP_KEY=seed,SWEEP_VALUES=0 1 2' slurm/sweep.sh" >&2
    exit 1
fi
if [ -z "${SWEEP_KEY:-}" ]; then
    SWEEP_KEY=gate.token_budget
    SWEEP_VALUES="${SWEEP_VALUES:-8 16 32 64}"
fi
: "${SWEEP_VALUES:?SWEEP_KEY=$SWEEP_KEY has no values; set SWEEP_VALUES, such as SWEEP_VALUES='0 1 2'}"
SWEEP_OUTPUT="${SWEEP_OUTPUT:-runs/sweep-${SLURM_ARRAY_JOB_ID:?submit this script with --array}}"

set -u
cd "$PROJECT" || exit 1
read -r -a values <<<"$SWEEP_VALUES"
if [ "$SLURM_ARRAY_TASK_ID" -ge "${#values[@]}" ]; then
    echo "array index $SLURM_ARRAY_TASK_ID has no value: SWEEP_VALUES='$SWEEP_VALUES' has" \
        "${#values[@]}; submit with --array=0-$((${#values[@]} - 1))" >&2
    exit 1
fi
value="${values[$SLURM_ARRAY_TASK_ID]}"

export PROJECT
# The last flag of a name counts: every task has its own value and folder, whatever "$@" says.
exec bash slurm/train.sh "$@" "--$SWEEP_KEY" "$value" --output "$SWEEP_OUTPUT/$SWEEP_KEY-$value"
