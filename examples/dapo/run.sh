#!/usr/bin/env bash
# DAPO: train only on prompts whose answers differ, clip higher upwards, weigh every token alike.
set -euo pipefail
out=${1:-outputs/dapo}

slime-quickstart --stop-after warm-up --output-dir "$out"

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/dapo" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle --rm-type math \
  --num-rollout 20 --rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256 \
  --rollout-max-response-len 16 \
  --dynamic-sampling-filter-path slime_core.data.filters.check_reward_nonzero_std \
  --over-sampling-batch-size 48 --partial-rollout --mask-offpolicy-in-partial-rollout \
  --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28 --loss-aggregation token \
  --overlong-buffer-len 4 --overlong-penalty-factor 1.0 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10 "${@:2}"
