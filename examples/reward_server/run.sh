#!/usr/bin/env bash
# Let a server of one's own score the responses.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
out=${1:-outputs/reward_server}

port=${PORT:-8765}

python "$here/server.py" "$port" &
server=$!
trap 'kill $server' EXIT
python "$here/data.py" "$out"

"$here/../warm_up.sh" "$out" "$out/data/demonstrations.jsonl" 12 --input-key messages

slime-train --hf-checkpoint "$out/warm-up/hf" --output-dir "$out/grpo" \
  --prompt-data "$out/data/train.jsonl" --input-key prompt --label-key label \
  --apply-chat-template \
  --rm-type remote_rm --rm-url "http://127.0.0.1:$port/score" \
  --reward-key digits --eval-reward-key exact \
  --rollout-shuffle --num-rollout 12 --rollout-batch-size 32 --n-samples-per-prompt 8 \
  --global-batch-size 256 --rollout-max-response-len 8 \
  --advantage-estimator grpo --use-dynamic-batch-size --max-tokens-per-gpu 4096 \
  --lr 1e-3 --adam-beta2 0.95 --weight-decay 0 \
  --eval-prompt-data sums "$out/data/eval.jsonl" --eval-interval 10
