#!/usr/bin/env bash
# Reward programs that pass their tests, each run in a sandbox.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/code_sandbox}

mkdir -p "$out"
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/data/demonstrations.jsonl" 12 --input-key messages

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rm-type code --reward-timeout-s 10 \
  --rollout-shuffle --num-rollout 12 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 12 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data programs "$out/data/eval.jsonl" --eval-interval 10
