#!/usr/bin/env bash
# Trains Qwen3-4B by GRPO on math problems; trainer and engines take turns on the GPUs of a machine.
#
#   HF_CHECKPOINT=... PROMPT_DATA=... bash scripts/run-qwen3-4B.sh [FURTHER FLAGS]
#
# Read from the environment:
#   HF_CHECKPOINT  the model: hf download Qwen/Qwen3-4B --local-dir DIR
#   PROMPT_DATA    rows with `prompt` and `label`, such as dapo-math-17k.jsonl
#   EVAL_DATA      the same for evaluation, such as aime-2024.jsonl; without it nothing is evaluated
#   REF_LOAD       weights of the reference, if not those of HF_CHECKPOINT
#   OUTPUT_DIR     metrics, logs and checkpoints; outputs/qwen3-4B unless set
#   NUM_GPUS       GPUs to use; 8 unless set
#
# The same command again continues from the last checkpoint. A flag that is given behind the script
# counts instead of the one here; `--dump-config --assume-gpus 8` shows all of them.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
: "${HF_CHECKPOINT:?set it to a directory with the model: hf download Qwen/Qwen3-4B --local-dir DIR}"
: "${PROMPT_DATA:?set it to a file of prompts and labels, such as dapo-math-17k.jsonl}"
out=${OUTPUT_DIR:-outputs/qwen3-4B}
export PATH="$PATH:$root/.venv/bin"

source "$root/scripts/models/qwen3-4B.sh"

files=(
  --hf-checkpoint "$HF_CHECKPOINT" ${REF_LOAD:+--ref-load "$REF_LOAD"}
  --output-dir "$out" --save "$out/checkpoints" --save-interval 20
)
placement=(--actor-num-nodes 1 --actor-num-gpus-per-node "${NUM_GPUS:-8}" --colocate)
engines=(--rollout-num-gpus-per-engine 2 --sglang-mem-fraction-static 0.7)
trainer=(
  --tensor-model-parallel-size 2 --sequence-parallel
  --recompute-granularity full --recompute-method uniform --recompute-num-layers 1
  --use-dynamic-batch-size --max-tokens-per-gpu 9216
)
rollouts=(
  --prompt-data "$PROMPT_DATA" --input-key prompt --label-key label
  --apply-chat-template --rollout-shuffle --rm-type deepscaler
  --num-rollout 3000 --rollout-batch-size 32 --n-samples-per-prompt 8 --global-batch-size 256
  --rollout-max-response-len 8192 --rollout-temperature 0.8 --balance-data
)
algorithm=(
  --advantage-estimator grpo --eps-clip 0.2 --eps-clip-high 0.28
  --use-kl-loss --kl-loss-coef 0.0 --kl-loss-type low_var_kl --entropy-coef 0.0
)
optimizer=(--lr 1e-6 --lr-decay-style constant --weight-decay 0.1 --adam-beta1 0.9 --adam-beta2 0.98)
evaluation=()
if [[ -n ${EVAL_DATA:-} ]]; then
  evaluation=(
    --eval-prompt-data aime "$EVAL_DATA" --eval-interval 20 --n-samples-per-eval-prompt 16
    --eval-max-response-len 16384 --eval-top-p 0.7
  )
fi

exec slime-train "${MODEL_ARGS[@]}" "${files[@]}" "${placement[@]}" "${engines[@]}" "${trainer[@]}" \
  "${rollouts[@]}" "${algorithm[@]}" "${optimizer[@]}" "${evaluation[@]}" "$@"
