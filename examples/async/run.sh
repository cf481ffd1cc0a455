#!/usr/bin/env bash
# Generate the next rollouts while the trainer trains on the last one.
set -euo pipefail
out=${1:-outputs/async}

slime-quickstart --stop-after warm-up --output-dir "$out"

slime-train-async --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/async" \
  --async-buffer-size 2 --max-staleness 1 --use-tis \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rm-type math \
  --num-rollout 40 --rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256 \
  --rollout-max-response-len 8 --advantage-estimator grpo \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10 "${@:2}"
