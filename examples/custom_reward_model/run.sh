#!/usr/bin/env bash
# Train a policy against a reward model of one's own.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/custom_reward_model}

python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/data/demonstrations.jsonl" 12 --input-key messages

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template \
  --custom-rm-path "$here/custom_rm.py" --reward-model-path "$out/reward_model.pt" \
  --rollout-shuffle --num-rollout 12 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 8 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10
