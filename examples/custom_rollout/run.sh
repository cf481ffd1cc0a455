#!/usr/bin/env bash
# Replace the whole rollout by a function of one's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/custom_rollout}

slime-quickstart --stop-after warm-up --output-dir "$out"

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle \
  --rollout-function-path "$here/rollout.py:generate_rollout" --rm-type math \
  --num-rollout 12 --rollout-batch-size 16 --n-samples-per-prompt 8 --global-batch-size 128 \
  --rollout-max-response-len 8 --advantage-estimator grpo \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 6 "${@:2}"
