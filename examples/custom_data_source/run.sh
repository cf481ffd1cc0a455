#!/usr/bin/env bash
# Train on prompts that a class makes up while the run goes on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/custom_data_source}

mkdir -p "$out"
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/data/demonstrations.jsonl" 20 --input-key messages \
  --rollout-shuffle

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --data-source-path "$here/curriculum.py:Curriculum" --disable-rollout-global-dataset \
  --partial-rollout --over-sampling-batch-size 40 --rm-type math \
  --num-rollout 10 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 8 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --apply-chat-template --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10
