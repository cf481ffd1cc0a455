#!/usr/bin/env bash
# Distil a teacher into a student on the student's own answers; there is no reward.
set -euo pipefail
out=${1:-outputs/on_policy_distillation}

slime-quickstart --stop-after warm-up --output-dir "$out"

# The student has seen a tenth of what the teacher has.
slime-train --hf-checkpoint "$out/model" --output-dir "$out/student" \
  --loss-type sft_loss --calculate-per-token-loss \
  --prompt-data "$out/data/demonstrations.jsonl@[0:4096]" --input-key messages \
  --num-rollout 4 --rollout-batch-size 1024 --global-batch-size 32 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 2e-3 --lr-warmup-iters 16 --adam-beta2 0.95 --weight-decay 0 \
  --save "$out/student/checkpoints" --save-interval 4 --save-hf "$out/student/hf"

slime-train --hf-checkpoint "$out/student/hf" --output-dir "$out/distilled" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-shuffle \
  --use-opd --opd-type megatron --opd-teacher-load "$out/warm-up/hf" --opd-kl-coef 1.0 \
  --advantage-estimator grpo --num-rollout 20 --rollout-batch-size 64 \
  --n-samples-per-prompt 4 --global-batch-size 256 --rollout-max-response-len 8 \
  --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 "${@:2}"
