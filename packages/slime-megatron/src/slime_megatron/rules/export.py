"""Where trained weights go as a Hugging Face checkpoint."""

from pathlib import Path

from slime_convert.target.replaceable import check_target
from slime_core.config.draft import Draft, Facts
from slime_core.errors import CheckpointError


def export(draft: Draft, facts: Facts) -> None:
    """What only the end of the run would find in --save-hf is found before it."""
    template: str | None = draft["save_hf"]
    source = Path(draft["hf_checkpoint"] or "").absolute()
    if template is None or draft["dump_config"] or not (source / "config.json").is_file():
        return
    if "{rollout_id" in template:  # which iterations this run comes to is not known
        return
    directory = Path(template.replace("{{", "{").replace("}}", "}")).absolute()
    if directory.exists() or source.resolve() in directory.resolve().parents:
        try:
            check_target(directory, source)
        except CheckpointError as error:
            draft.problem(f"--save-hf {template}: {error}")
