#!/usr/bin/env bash
# Evaluate weights on several sets, each with settings of its own; nothing is trained.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/evaluation_only}

slime-quickstart --stop-after warm-up --output-dir "$out"
sed "s|DATA|$out/data|" "$here/sets.yaml" > "$out/sets.yaml"

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/evaluation" \
  --num-rollout 0 --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template --rollout-batch-size 1 --rollout-max-response-len 8 --rm-type math \
  --eval-config "$out/sets.yaml" "${@:2}"
