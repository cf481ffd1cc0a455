#!/usr/bin/env bash
# Supervised fine-tuning on conversations, several assistant turns each.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/sft}

slime-quickstart --stop-after data --output-dir "$out"
python "$here/conversations.py" "$out/data/train.jsonl" "$out/data/conversations.jsonl"

slime-train --hf-checkpoint "$out/model" --output-dir "$out/sft" \
  --loss-type sft_loss --calculate-per-token-loss \
  --prompt-data "$out/data/conversations.jsonl" --input-key messages --rollout-shuffle \
  --num-epoch 6 --rollout-batch-size 256 --global-batch-size 32 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 3e-3 --lr-warmup-iters 16 --lr-decay-style cosine --adam-beta2 0.95 --weight-decay 0 \
  --save "$out/sft/checkpoints" --save-interval 20 --save-hf "$out/sft/hf" "${@:2}"
