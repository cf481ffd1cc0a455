"""Flags of other versions of slime, of the Megatron it patches, and of other programs."""

from collections.abc import Mapping
from types import MappingProxyType

_POST_NORM = (
    "a model of the glm4 family has these norms because its config.json says so; leave it out, "
    "or take the preset scripts/models/glm4-9B.sh of this repository"
)
_CRITIC = (
    "the critic's own settings go into a file: give --megatron-config-path FILE with "
    "`megatron: [{role: critic, overrides: {lr: 1.0e-5}}]`"
)
_RESUME = (
    "the same command given again goes on from --save; to go on from another directory give --load"
)
_ROUTER = "the router in front of the engines is SGLang's, with flags --router-*; leave it out"

GONE: Mapping[str, str] = MappingProxyType(
    {
        "--post-self-attn-layernorm": _POST_NORM,
        "--post-mlp-layernorm": _POST_NORM,
        "--use-gated-attention": "models with gated attention (Qwen3-Next, Qwen3.5) cannot be "
        "trained: `slime-convert list` names the families that can",
        "--use-critic": "there is a critic with --advantage-estimator ppo: give that",
        "--critic-num-nodes": "the critic is on the actor's GPUs; leave it out",
        "--critic-num-gpus-per-node": "the critic is on the actor's GPUs; leave it out",
        "--critic-load": _CRITIC,
        "--critic-save": _CRITIC,
        "--critic-lr": _CRITIC,
        "--critic-lr-warmup-iters": _CRITIC,
        "--use-slime-router": _ROUTER,
        "--slime-router-timeout": _ROUTER,
        "--slime-router-max-connections": _ROUTER,
        "--slime-router-middleware-paths": _ROUTER,
        "--use-rollout-correction": "give --use-tis, with --tis-level, --tis-mode and --tis-clip",
        "--resume": _RESUME,
        "--resume-from-checkpoint": _RESUME,
        "--resume-mode": _RESUME,
        "--rollout-global-dataset": "this is how prompts are read anyway; leave it out",
    }
)
"""Spelling and what to do: for these the nearest spelling would be the wrong advice."""

MEANT: Mapping[str, str] = MappingProxyType(
    {
        "--learning-rate": "--lr",
        "--min-learning-rate": "--min-lr",
        "--warmup-steps": "--lr-warmup-iters",
        "--warmup-ratio": "--lr-warmup-fraction",
        "--lr-scheduler-type": "--lr-decay-style",
        "--max-grad-norm": "--clip-grad",
        "--epochs": "--num-epoch",
        "--num-train-epochs": "--num-epoch",
        "--max-steps": "--num-rollout",
        "--model": "--hf-checkpoint",
        "--model-path": "--hf-checkpoint",
        "--dataset": "--prompt-data",
        "--train-data": "--prompt-data",
        "--temperature": "--rollout-temperature",
        "--max-new-tokens": "--rollout-max-response-len",
        "--num-generations": "--n-samples-per-prompt",
        "--model-name-or-path": "--hf-checkpoint",
        "--train-files": "--prompt-data",
        "--val-files": "--eval-prompt-data",
        "--reward-funcs": "--custom-rm-path",
        "--max-completion-length": "--rollout-max-response-len",
        "--max-response-length": "--rollout-max-response-len",
        "--max-prompt-length": "--rollout-max-prompt-len",
        "--train-batch-size": "--rollout-batch-size",
        "--per-device-train-batch-size": "--micro-batch-size",
        "--ppo-mini-batch-size": "--global-batch-size",
        "--gradient-accumulation-steps": "--global-batch-size",
        "--clip-eps": "--eps-clip",
        "--clip-ratio": "--eps-clip",
        "--clip-ratio-low": "--eps-clip",
        "--clip-ratio-high": "--eps-clip-high",
        "--epsilon": "--eps-clip",
        "--epsilon-high": "--eps-clip-high",
        "--beta": "--kl-loss-coef",
        "--tis-upper-bound": "--tis-clip",
        "--tis-lower-bound": "--tis-clip-low",
        "--entropy-coeff": "--entropy-coef",
        "--gpu-memory-utilization": "--sglang-mem-fraction-static",
        "--vllm-gpu-memory-utilization": "--sglang-mem-fraction-static",
        "--total-epochs": "--num-epoch",
        "--save-steps": "--save-interval",
        "--save-freq": "--save-interval",
        "--eval-steps": "--eval-interval",
        "--test-freq": "--eval-interval",
        "--nnodes": "--actor-num-nodes",
        "--n-gpus-per-node": "--actor-num-gpus-per-node",
        "--tp": "--tensor-model-parallel-size",
        "--tp-size": "--tensor-model-parallel-size",
        "--pp": "--pipeline-model-parallel-size",
        "--pp-size": "--pipeline-model-parallel-size",
        "--cp-size": "--context-parallel-size",
        "--ep-size": "--expert-model-parallel-size",
        "gpu": "cuda",
    }
)
"""What other programs call it, and how it is spelled here: no letters in common lead there."""
