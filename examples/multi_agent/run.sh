#!/usr/bin/env bash
# Teach a small model to solve and to check, then train both roles as a team.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/multi_agent}

mkdir -p "$out"
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/demonstrations.jsonl" 20 --input-key messages

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/train.jsonl" --input-key prompt --label-key label \
  --custom-generate-function-path "$here/agents.py:custom_generate" --max-turns 2 \
  --rollout-shuffle --num-rollout 20 --rollout-batch-size 16 --n-samples-per-prompt 8 \
  --global-batch-size 128 --rollout-max-response-len 64 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/eval.jsonl" --eval-interval 10
