"""What the fork server of ``ranks`` imports: Megatron, and nothing that tests want to see fresh."""

import gc
import importlib

from slime_megatron.mcore.startup import bootstrap
from slime_megatron.mcore.startup.quiet import quiet

bootstrap.load()
for _name in (
    "megatron.core.dist_checkpointing",
    "megatron.core.models.gpt.gpt_layer_specs",
    "megatron.training.training",
    "safetensors.torch",
    "torch._dynamo",  # torch's optimizers import it at their first step
):
    with quiet():
        importlib.import_module(_name)
gc.collect()
gc.freeze()  # what is here stays: ranks need not look through it when they collect
