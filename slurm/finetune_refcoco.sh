#!/bin/bash
# Finetunes on RefCOCO with configs/finetune/refcoco.yaml on the nodes of a job, one rank a GPU, and
# puts the job back into the queue until the run is done. Submit it in the repository:
#
#   sbatch --gpus-per-node=4 --account=X slurm/finetune_refcoco.sh \
#       --init=/scratch/me/4m/release --out=/scratch/me/refcoco
#
# Other recipes of the same task: --config configs/finetune/refcoco_mmca.yaml. Before the script
# stand options of sbatch, after it values of the config; a shared node gives each GPU the CPUs that
# --cpus-per-gpu says. The rest is as in pretrain_4m.sh and docs/training.md.
#
#SBATCH --job-name=finetune-refcoco
#SBATCH --nodes=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-gpu=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:USR1@300
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=%x-%j.log
set -eo pipefail

cd "${SLURM_SUBMIT_DIR:-.}"
source "${WHOLEGRAIN_ENV:-/dev/null}" # before -u, which module and conda do not bear
set -u
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"

exec "${PYTHON:-python}" -m wholegrain.train.slurm -m finetune.refcoco \
    --config configs/finetune/refcoco.yaml "$@"
