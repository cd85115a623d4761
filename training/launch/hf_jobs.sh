#!/bin/bash
# Pre-training as a Hugging Face Job on all GPUs of one machine; the same command resumes.
#   make wheel
#   BUCKET=me/runs FLAVOR=h200 bash training/launch/hf_jobs.sh \
#     --config own_images --dataset me/photos --output_dir /runs/photos
# The run's folder lies in a bucket, which is mounted at /runs: make one by `hf buckets create`. `hf jobs hardware` lists
# flavors and prices. HF_JOBS_OPTIONS holds further options of `hf jobs run`, such as --dry-run or --detach.
# NOT VERIFIED ON THE HUB: the tests read the command with the hf command's own parser, and submit nothing.
set -euo pipefail
: "${BUCKET:?give BUCKET=NAMESPACE/NAME, a bucket of the Hub for the run}"
ls dist/*.whl >/dev/null || { echo "dist/ holds no wheel of ldae; run: make wheel" >&2; exit 2; }
read -r -a more <<<"${HF_JOBS_OPTIONS:-}"
hf jobs run --flavor "${FLAVOR:-l4x1}" --timeout "${TIMEOUT:-12h}" --secrets HF_TOKEN \
  --volume ./dist:/dist --volume "hf://buckets/$BUCKET:/runs" ${more[@]+"${more[@]}"} \
  -- "${IMAGE:-python:3.12}" bash -c \
  'pip install --quiet /dist/*.whl && exec torchrun --nproc_per_node gpu -m ldae pretrain "$@"' pretrain "$@"
