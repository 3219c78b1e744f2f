#!/bin/bash
# One sweep as a work queue of four jobs, without submitit:   sbatch docs/clusters/slurm.sh     (from the checkout)
# Replace the partition. The environment is .venv, as `make install` makes it.
#SBATCH --job-name=sweep-mine
#SBATCH --partition=normal
#SBATCH --array=0-3
#SBATCH --cpus-per-task=2
#SBATCH --mem=8G
#SBATCH --time=04:00:00
#SBATCH --requeue
#SBATCH --signal=B:TERM@60
#SBATCH --open-mode=append
#SBATCH --output=sweep-mine-%A_%a.log

export HF_HUB_OFFLINE=1 OMP_NUM_THREADS=2
# export MLFLOW_TRACKING_URI=http://mlflow.example.com:5000    # without it: outputs/mlflow.db, which suits a few jobs

# Out of time, or about to be preempted: the job goes back into the queue, where the same command resumes, and Slurm asks the
# worker to end. A job that is being cancelled is not running any more, and stays cancelled.
job="${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"
make_room() {
    trap '' TERM  # Slurm's signal goes to every process of the job: squeue and scontrol inherit that it is ignored
    if [ "$(squeue --noheader --jobs "$job" --format %T)" = RUNNING ]; then
        scontrol requeue "$job" || kill -TERM "$worker"
    fi
    trap make_room TERM
}
trap make_room TERM

. .venv/bin/activate
python train.py -m sweep=mine adapter=lora,foura rank=4,16 seed=0,1,2,3,4 &
worker=$!
while kill -0 "$worker" 2>/dev/null; do
    wait "$worker"  # until it ends or a signal comes; Slurm kills what is left when this script ends
    code=$?
done
exit "$code"
