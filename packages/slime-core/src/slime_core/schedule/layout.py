"""How the trainer's ranks are divided; imports no torch."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class ParallelLayout:
    """Sizes of the trainer's parallel dimensions; no process groups."""

    dp: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    vpp: int = 1
    """Model chunks per pipeline stage."""
    ep: int = 1

    @property
    def world_size(self) -> int:
        """Ranks of the trainer; expert parallelism divides, it does not multiply."""
        return self.dp * self.cp * self.tp * self.pp

    def dp_rank(self, rank: int) -> int:
        """Which data share a global rank trains on; ranks count tp, then cp, then dp, then pp."""
        return rank // (self.tp * self.cp) % self.dp

    @property
    def microbatch_multiple(self) -> int:
        """The interleaved pipeline schedule wants whole rounds of microbatches."""
        return self.pp if self.vpp > 1 else 1
