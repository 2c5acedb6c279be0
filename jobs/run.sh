# The body of a job:  . jobs/run.sh CONFIG.toml [--section.key VALUE ...], from the project's root.
# One rank a task; a run that is stopped by its time limit is checkpointed, requeued and continued.
#   HPCSPLIT_VENV   environment with hpcsplit installed (default .venv)
#   HPCSPLIT_PMI    srun's --mpi (default pmi2, for MPICH); "mpirun" starts with the mpirun of the environment instead
set -u
ulimit -c 0
export PATH="$PWD/${HPCSPLIT_VENV:-.venv}/bin:$PATH"
export HDF5_USE_FILE_LOCKING=FALSE PYTHONUNBUFFERED=1
export OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1} SRUN_CPUS_PER_TASK=${SLURM_CPUS_PER_TASK:-1}

program=(python -m hpcsplit train "$1" --run-dir "runs/$(basename "$1" .toml)-$SLURM_JOB_ID" "${@:2}")
if [ "${HPCSPLIT_PMI:-pmi2}" = mpirun ]; then
    mpirun -n "$SLURM_NTASKS" "${program[@]}" &
else
    srun --mpi="${HPCSPLIT_PMI:-pmi2}" --kill-on-bad-exit=1 --gpu-bind=none "${program[@]}" &
fi
pid=$!
trap 'kill -USR1 $pid' USR1 TERM # USR1 only: srun answers TERM by killing the ranks

# A trap makes wait return early; go on until the program itself has ended.
while :; do
    wait $pid
    rc=$?
    kill -0 $pid 2>/dev/null || break
done
if [ $rc = 75 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 50 ]; then
    scontrol requeue "$SLURM_JOB_ID"
fi
exit $rc
