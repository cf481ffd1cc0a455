#!/usr/bin/env bash
# Teach a small model to call a calculator, then let reinforcement learning find out that it pays.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/multi_turn_tools}

mkdir -p "$out"
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/demonstrations.jsonl" 12 --input-key messages

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/train.jsonl" --input-key prompt --label-key label --tool-key tools \
  --custom-generate-function-path "$here/calculator.py:custom_generate" --max-turns 3 \
  --sglang-tool-call-parser qwen25 \
  --rollout-shuffle --num-rollout 20 --rollout-batch-size 16 --n-samples-per-prompt 8 \
  --global-batch-size 128 --rollout-max-response-len 64 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data products "$out/eval.jsonl" --eval-interval 10
