"""Convert Hugging Face weights for training, with the flags of a training script.

    source scripts/models/qwen3-4B.sh
    torchrun --nproc_per_node=4 tools/convert_hf_to_torch_dist.py ${MODEL_ARGS[@]} \
        --hf-checkpoint Qwen3-4B --save Qwen3-4B_torch_dist

The same as ``slime-convert hf-to-dist``: no GPU is needed and one process does the work, so that
``python`` in place of ``torchrun`` will do. Flags that contradict config.json are an error.
"""

import sys

from slime_convert.upstream_converter import main

if __name__ == "__main__":
    sys.exit(main())
