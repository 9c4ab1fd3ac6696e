#!/bin/bash
# Trains a selector under Slurm, one task per GPU (or per CPU rank), on any number of nodes:
#
#   DEEPSPEED_CONFIG=configs/deepspeed/public_zero2.json \
#       sbatch --nodes=2 --ntasks-per-node=8 --gpus-per-node=8 --cpus-per-task=6 --mem=0 \
#       slurm/train.sh --config FILE.yaml
#
# The batch of DEEPSPEED_CONFIG has to split evenly over all tasks; the default, zero2.json, allows 1
# or 2. Submit from the project folder. All arguments after the script's name go to
# autoselect/train.py.
# 120 s before the time limit, and on preemption, the run saves a checkpoint and the job is requeued.
# It then resumes from the checkpoint, in the same log and the same MLflow run. A preemption must
# leave enough time for a step and a checkpoint (GraceTime of the partition or QOS).

#SBATCH --job-name=autoselect
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
#SBATCH --requeue

# Every variable may be set in the environment of sbatch. With --export=NONE or a list, name them:
# --export=ALL,NAME=value.
PROJECT="${PROJECT:-${SLURM_SUBMIT_DIR:?submit this script with sbatch}}"
PYTHON="${PYTHON:-$PROJECT/.venv/bin/python}"
DEEPSPEED_CONFIG="${DEEPSPEED_CONFIG:-configs/deepspeed/zero2.json}"
MASTER_PORT="${MASTER_PORT:-$((20000 + SLURM_JOB_ID % 10000))}" # below 32768, where Linux gives ports away
CRASHES="${CRASHES:-10}" # lost ranks after which a job is still requeued automatically
PREEMPTED=75             # exit code of autoselect/train.py after a signal and a checkpoint
TERMINATED=143           # its exit code after SIGTERM before the ranks have met
LOST=70                  # its exit code if another rank is dead or stalled
KILLED=137               # exit code of a task that got SIGKILL, such as tasks of a node that failed

set -u
cd "$PROJECT" || exit 1
command -v "$PYTHON" >/dev/null || {
    echo "PYTHON=$PYTHON does not exist; run 'make setup' in $PROJECT or set PYTHON" >&2
    exit 1
}
if [ "${SLURM_HET_SIZE:-1}" -gt 1 ]; then
    echo "job $SLURM_JOB_ID has SLURM_HET_SIZE=$SLURM_HET_SIZE components, of which srun would use the" \
        "first alone; submit one component, with one kind of node" >&2
    exit 1
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
unset RANK WORLD_SIZE LOCAL_RANK # of another launcher; they would win over Slurm's

# One task of an array has the number of the whole array: scontrol would take it for all its tasks.
job="$SLURM_JOB_ID"
[ "${SLURM_ARRAY_JOB_ID:-}" != "$job" ] || job="${job}_$SLURM_ARRAY_TASK_ID"

# Use the address of the first node, because its name need not resolve.
first_node="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
first_address="$(scontrol show node "$first_node" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p')"
export MASTER_ADDR="${MASTER_ADDR:-${first_address:-$first_node}}"
export MASTER_PORT
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-${SLURM_CPUS_PER_TASK:-1}}"
if [ -n "${SLURM_CPUS_PER_TASK:-}" ]; then
    export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK" # srun no longer inherits it
fi

# Only this shell gets the signal. Pass it on to all tasks, and keep waiting for them.
requeue=no
step=""
pass_on() {
    if [ -n "$step" ]; then
        kill -s "$1" "$step"
    fi
}
trap 'requeue=yes; pass_on USR1' USR1
trap 'pass_on TERM' TERM

# To preempt a job, Slurm sends TERM to its tasks and waits for GraceTime, like scancel.
preempted() {
    scontrol show job "$job" | grep -q 'PreemptTime=[0-9]'
}

echo "job $job, start ${SLURM_RESTART_COUNT:-0}: ${SLURM_NTASKS:-one per node as} tasks on" \
    "$SLURM_JOB_NODELIST, meeting at $MASTER_ADDR:$MASTER_PORT, with $DEEPSPEED_CONFIG"

# A job is requeued for other reasons too, so lost ranks are counted in a file, one line for each.
CRASHED="autoselect-$SLURM_JOB_ID.crashes"
[ "${SLURM_RESTART_COUNT:-0}" -gt 0 ] || rm -f "$CRASHED"

# The first task that exits with a code other than 0 makes srun kill the others, even those that are
# still closing after the common checkpoint. The task therefore hides the code for "preempted", and
# rank 0 leaves a mark for this shell instead. Tasks get the environment of this shell, whatever
# --export said to sbatch.
MARK="$PWD/autoselect-$SLURM_JOB_ID.preempted"
rm -f "$MARK"
export PATH MARK PREEMPTED
trap 'rm -f "$MARK"' EXIT
srun --kill-on-bad-exit=1 --export=ALL bash -c '
    trap : USR1 TERM # sent to this shell too; it waits for the run to end
    "$@"
    code=$?
    if [ "$code" -eq "$PREEMPTED" ]; then
        [ "$SLURM_PROCID" -ne 0 ] || : >"$MARK"
        code=0
    fi
    exit "$code"
' task "$PYTHON" -u autoselect/train.py --deepspeed "$DEEPSPEED_CONFIG" "$@" &
step=$!

# A trapped signal ends 'wait' early, with a code above 128, although the step still runs.
wait "$step"
code=$?
while kill -0 "$step" 2>/dev/null; do
    wait "$step"
    code=$?
done
step=""

again=no
if [ "$code" -eq 0 ] && [ -e "$MARK" ]; then
    code="$PREEMPTED"
    again="$requeue"
    ! preempted || again=yes
elif [ "$code" -eq "$TERMINATED" ]; then
    ! preempted || again=yes
elif [ "$code" -eq "$LOST" ] || [ "$code" -eq "$KILLED" ]; then
    # The ranks notice a dead node long before Slurm, which would also requeue the job.
    if ! echo "start ${SLURM_RESTART_COUNT:-0} ended with code $code" >>"$CRASHED"; then
        echo "job $job is not requeued: $CRASHED cannot be written" >&2
    elif [ "$(wc -l <"$CRASHED")" -le "$CRASHES" ]; then
        again=yes
    else
        echo "job $job lost ranks more often than CRASHES=$CRASHES and is not requeued;" \
            "look at the nodes, then submit it again to resume:" "$(paste -sd, "$CRASHED")" >&2
    fi
fi
# A job that was cancelled or ran out of time is no longer in the state RUNNING.
if [ "$again" = yes ] && scontrol show job "$job" | grep -q 'JobState=RUNNING'; then
    echo "job $job (code $code) goes back to the queue, to resume from its checkpoint"
    scontrol requeue "$job" && exit 0
    echo "job $job cannot be requeued; submit it again to resume" >&2
fi
rm -f "$CRASHED"
exit "$code"
