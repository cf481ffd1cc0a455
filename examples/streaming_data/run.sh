#!/usr/bin/env bash
# Read prompts of several files while training on them.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/streaming_data}

mkdir -p "$out"
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/data/demonstrations.jsonl" 20 --input-key messages \
  --streaming-data --streaming-window 2000 --rollout-shuffle

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/data/sums.jsonl" "$out/data/sums.csv*0.5" "$out/data/sums@[:-50]*2" \
  --streaming-data --streaming-window 500 --num-data-workers 2 --rollout-shuffle \
  --data-error-policy skip --apply-chat-template --rm-type math \
  --num-rollout 10 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 8 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10
