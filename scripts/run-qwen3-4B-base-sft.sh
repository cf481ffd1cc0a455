#!/usr/bin/env bash
# Fine-tunes Qwen3-4B-Base on conversations, three times over the data, on the GPUs of a machine.
#
#   HF_CHECKPOINT=... PROMPT_DATA=... bash scripts/run-qwen3-4B-base-sft.sh [FURTHER FLAGS]
#
# Read from the environment:
#   HF_CHECKPOINT  the model: hf download Qwen/Qwen3-4B-Base --local-dir DIR
#   PROMPT_DATA    rows whose `messages` are a conversation, such as openhermes2_5.parquet
#   OUTPUT_DIR     metrics, logs and checkpoints; outputs/qwen3-4B-base-sft unless set
#   NUM_GPUS       GPUs to use; 8 unless set
#
# The same command again continues from the last checkpoint. A flag that is given behind the script
# counts instead of the one here; `--dump-config --assume-gpus 8` shows all of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${HF_CHECKPOINT:?set it to a directory with the model: hf download Qwen/Qwen3-4B-Base --local-dir DIR}"
: "${PROMPT_DATA:?set it to a file of conversations, such as openhermes2_5.parquet}"
out=${OUTPUT_DIR:-outputs/qwen3-4B-base-sft}
export PATH="$PATH:$root/.venv/bin"

source "$root/scripts/models/qwen3-4B.sh"

files=(
  --hf-checkpoint "$HF_CHECKPOINT"
  --output-dir "$out" --save "$out/checkpoints" --save-interval 1000
)
trainer=(
  --actor-num-nodes 1 --actor-num-gpus-per-node "${NUM_GPUS:-8}"
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --use-dynamic-batch-size --max-tokens-per-gpu 9216
)
data=(
  --loss-type sft_loss --calculate-per-token-loss
  --prompt-data "$PROMPT_DATA" --input-key messages --rollout-shuffle
  --num-epoch 3 --rollout-batch-size 128 --global-batch-size 128
)
optimizer=(
  --lr 1e-5 --min-lr 1e-6 --lr-decay-style cosine --lr-warmup-fraction 0.1
  --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.95
)

exec slime-train "${MODEL_ARGS[@]}" "${files[@]}" "${trainer[@]}" "${data[@]}" "${optimizer[@]}" "$@"
