#!/usr/bin/env bash
# Train on prompts that a class makes up while the run goes on.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/custom_data_source}

mkdir -p "$out"
python "$here/data.py" "$out"

slime-train --hf-checkpoint "$out/model" --output-dir "$out/warm-up" \
  --loss-type sft_loss --calculate-per-token-loss \
  --prompt-data "$out/data/demonstrations.jsonl" --input-key messages \
  --rollout-shuffle \
  --num-rollout 20 --rollout-batch-size 1024 --global-batch-size 32 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 3e-3 --lr-warmup-iters 32 --lr-decay-style WSD --lr-wsd-decay-style linear \
  --lr-wsd-decay-iters 160 --adam-beta2 0.95 --weight-decay 0 \
  --save "$out/warm-up/checkpoints" --save-interval 20 --save-hf "$out/warm-up/hf"

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --data-source-path "$here/curriculum.py:Curriculum" --disable-rollout-global-dataset \
  --partial-rollout --over-sampling-batch-size 40 --rm-type math \
  --num-rollout 10 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 8 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --apply-chat-template --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10
