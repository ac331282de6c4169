#!/bin/bash
# Converts a data set with a Slurm array: each task writes its share of the parts into OUT.work, and
# the one that finds all of them complete makes the corpus. The arguments are those of
# `python -m data_tools convert`.
#
#   sbatch --array=0-63 slurm/convert_array.sh coco --images train2017 \
#       --captions captions_train2017.json --instances instances_train2017.json --out coco_train
#
# Account, partition, time and the like go to sbatch (--account=..., or SBATCH_ACCOUNT=... and so
# on). The array must have all its numbers (0-63 or 1-64, not 0-63:2 or 3,7). The tasks need a file
# system in common and the Python environment in which sbatch is called, or the one that PYTHON
# names. After failed tasks or a time limit, submit the same line again, with as many tasks as you
# like: what is complete is kept, and a task that has nothing left to do ends at once.
#
#SBATCH --job-name=convert
#SBATCH --cpus-per-task=4
#SBATCH --mem-per-cpu=2G
#SBATCH --time=08:00:00
#SBATCH --output=%x-%A_%a.log
set -euo pipefail

export OMP_NUM_THREADS=1
cd "${SLURM_SUBMIT_DIR:-.}"
source=${1:?"name the source, such as coco, and its options"}
shift

exec "${PYTHON:-python}" -m data_tools convert "$source" \
    --processes "${SLURM_CPUS_PER_TASK:-1}" "$@" \
    --task "$((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN + 1))/${SLURM_ARRAY_TASK_COUNT}"
