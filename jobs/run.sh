# The body of a training job:  . jobs/run.sh CONFIG.toml [--section.key VALUE ...], from the project's root.
# One rank a task.  The run directory, runs/CONFIG-JOB unless --run-dir DIR says otherwise, is continued if it is there.
#   HPCSPLIT_VENV      environment with hpcsplit installed (default .venv)
#   HPCSPLIT_PROGRAM   module that trains, with its first words (default hpcsplit train)
#   HPCSPLIT_PMI       srun's --mpi: pmi2 for MPICH (default), pmix for an Open MPI built with Slurm's PMIx;
#                      "mpirun": start with the mpirun of the environment, MPICH's or Open MPI's, instead
#   HPCSPLIT_SRUN      further options of srun, or of mpirun
#   HPCSPLIT_AGAIN     what follows exit 75: requeue (default), chain (the next job of jobs/chain), none
#   HPCSPLIT_RESTARTS  requeue so often at most (default 50)
#
# USR1, sent by Slurm before the time limit (#SBATCH --signal), asks for a checkpoint, exit 75, and to be started again.
# TERM comes when Slurm ends the job itself (scancel, time limit, preemption): the same, but what follows is Slurm's.
# GPUs are as Slurm gives them, so both ways work: all of the node's for each rank (--gpus-per-node=N; a rank takes
# the one of its number on the node), or one for each (--gpus-per-task=1).
set -u
ulimit -c 0
. jobs/environment.sh
job=${SLURM_ARRAY_JOB_ID:+${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID} # the id of a task may be that of its whole array
job=${job:-$SLURM_JOB_ID}

# A rank ignores USR1 until Python has a handler for it; before, it would be the end of it.
program=(bash -c 'trap "" USR1; exec "$@"' hpcsplit
    python -m ${HPCSPLIT_PROGRAM:-hpcsplit train} "$1" --run-dir "runs/$(basename "$1" .toml)-$job" "${@:2}")
if [ "${HPCSPLIT_PMI:=pmi2}" = mpirun ]; then
    unset SLURM_GPUS_PER_TASK SLURM_CPUS_PER_TASK # mpirun starts one process a node by srun: that one needs all of it
    export SLURM_CPU_BIND=none
    start=(mpirun -n "$SLURM_NTASKS" --bind-to none ${HPCSPLIT_SRUN:-})
else
    export SRUN_CPUS_PER_TASK=$OMP_NUM_THREADS # srun does not take it over from sbatch
    start=(srun --mpi="$HPCSPLIT_PMI" --kill-on-bad-exit=1 ${HPCSPLIT_SRUN:-})
fi

told="" nag="" pid=""
ask() { # noted; passed on once there is a program, again every 5 s, since its ranks may not listen yet
    told=$1
    [ -n "$pid" ] && [ -z "$nag" ] || return
    while kill -USR1 "$pid" 2>/dev/null; do sleep 5; done & # USR1 for TERM too: on TERM srun kills the ranks
    nag=$!
}
trap 'ask USR1' USR1
trap 'ask TERM' TERM
(trap '' USR1 && exec "${start[@]}" "${program[@]}") &
pid=$!
[ -z "$told" ] || ask "$told"
while :; do # a trap ends wait early
    wait "$pid"
    rc=$?
    kill -0 "$pid" 2>/dev/null || break
done
[ -n "$nag" ] && kill "$nag" 2>/dev/null
trap '' USR1 TERM

say() { echo "jobs/run.sh: $*" >&2; }
if [ "$told" = TERM ]; then
    say "exit $rc after TERM; the job is ended by Slurm"
elif [ $rc = 75 ] && [ "${HPCSPLIT_AGAIN:=requeue}" = requeue ]; then
    if [ "${SLURM_RESTART_COUNT:-0}" -ge "${HPCSPLIT_RESTARTS:=50}" ]; then
        say "exit 75, but not requeued: started again ${SLURM_RESTART_COUNT:-0} times," \
            "HPCSPLIT_RESTARTS = $HPCSPLIT_RESTARTS"
    elif ! scontrol requeue "$job"; then
        say "exit 75, but this job may not be requeued: submit it again with --run-dir, or use jobs/chain"
    fi
elif [ $rc != 75 ] && [ "${HPCSPLIT_AGAIN:-}" = chain ]; then # done or failed: the jobs that wait have nothing to do
    scancel --state=PENDING --user="$(id -un)" --name="$SLURM_JOB_NAME"
    say "exit $rc; the rest of the chain $SLURM_JOB_NAME is cancelled"
fi
exit "$rc"
