#!/usr/bin/env bash
# warm_up.sh OUT DEMONSTRATIONS ITERATIONS [flags]
# Teaches the small model of OUT/model to answer as the demonstrations do, so that reinforcement
# learning has something to reinforce; the weights land in OUT/warm-up/hf.
set -euo pipefail
out=$1 demonstrations=$2 iterations=$3
shift 3

slime-train --hf-checkpoint "$out/model" --output-dir "$out/warm-up" \
  --loss-type sft_loss --calculate-per-token-loss --prompt-data "$demonstrations" "$@" \
  --num-rollout "$iterations" --rollout-batch-size 1024 --global-batch-size 32 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 3e-3 --lr-warmup-iters 32 --lr-decay-style WSD --lr-wsd-decay-style linear \
  --lr-wsd-decay-iters "$((8 * iterations))" --adam-beta2 0.95 --weight-decay 0 \
  --save "$out/warm-up/checkpoints" --save-interval "$iterations" --save-hf "$out/warm-up/hf"
