# What every job sets before Python starts:  . jobs/environment.sh, from the project's root; reads HPCSPLIT_VENV.
case ${HPCSPLIT_VENV:=.venv} in /*) ;; *) HPCSPLIT_VENV=$PWD/$HPCSPLIT_VENV ;; esac
export PATH="$HPCSPLIT_VENV/bin:$PATH"
export HDF5_USE_FILE_LOCKING=FALSE PYTHONUNBUFFERED=1 OMP_NUM_THREADS=${SLURM_CPUS_PER_TASK:-1}
