#!/bin/bash
# Pretrains with configs/pretrain/4m.yaml on the nodes of a job, one rank a GPU, and puts the job
# back into the queue until the run is done. Submit it in the repository:
#
#   sbatch --nodes=4 --gpus-per-node=8 --account=X slurm/pretrain_4m.sh \
#       --out=/scratch/me/4m --data.train.0.path=/scratch/corpora/coco
#
# Before the script stand options of sbatch (or SBATCH_ACCOUNT=... and so on), after it values of the
# config. The run folder must lie on storage that all nodes share. docs/training.md tells the rest:
# containers, modules, clusters without internet, logs, and what happens at a preemption.
#
#   PYTHON             Python of the environment; `python` by default
#   WHOLEGRAIN_ENV     file that is sourced before anything starts: `module load`, `export`
#   WHOLEGRAIN_SRUN    more options of srun
#   WHOLEGRAIN_RANKS_PER_NODE, WHOLEGRAIN_MAX_RESTARTS, MASTER_ADDR, MASTER_PORT
#
#SBATCH --job-name=pretrain-4m
#SBATCH --nodes=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --time=24:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -eo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
source "${WHOLEGRAIN_ENV:-/dev/null}" # before -u, which module and conda do not bear
set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec "${PYTHON:-python}" -m wholegrain.train.slurm -m pretrain \
    --config configs/pretrain/4m.yaml --run.deepspeed=configs/deepspeed/zero1.json "$@"
