"""The quickstart's model and task, and a reward model learnt from preferences."""

import random
import sys
from pathlib import Path

import torch
from custom_rm import ColumnScorer
from slime_train.quickstart.task import careless, problems

PAIRS = 8_192
STEPS = 800
BATCH = 128
_MARGIN = 4.0


def columns(left: int, right: int, total: str) -> list[list[int]]:
    """The two columns of an addition and what was written below them."""
    return [
        [left // 10, right // 10, int(total[0])],
        [left % 10, right % 10, int(total[1])],
    ]


def preferences(rng: random.Random, number: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Right sums, and sums by a careless teacher."""
    chosen, rejected = [], []
    pool = problems()
    while len(chosen) < number:
        problem = rng.choice(pool)
        wrong = careless(problem.total, rng)
        if wrong != problem.total:
            chosen.append(columns(problem.left, problem.right, problem.total))
            rejected.append(columns(problem.left, problem.right, wrong))
    return torch.tensor(chosen), torch.tensor(rejected)


def learn(seed: int = 0, steps: int = STEPS) -> ColumnScorer:
    """Bradley-Terry: log sigmoid of the difference between the chosen and the rejected score.

    Scores are kept apart by a margin on both sides of 0, so that the sigmoid of a score is near 1
    for a right sum.
    """
    torch.manual_seed(seed)
    chosen, rejected = preferences(random.Random(seed), PAIRS)
    model = ColumnScorer()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(steps):
        batch = torch.randint(PAIRS, (BATCH,))
        good, bad = model(chosen[batch]), model(rejected[batch])
        apart = -torch.nn.functional.logsigmoid(good - bad)
        around = torch.relu(_MARGIN - good) + torch.relu(_MARGIN + bad)
        loss = (apart + around).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model


def write(directory: Path) -> None:
    """Write model/, data/ and reward_model.pt."""
    from slime_train.quickstart.cli import write_model
    from slime_train.quickstart.task import write_task

    torch.set_num_threads(1)  # more would only wait for each other
    directory.mkdir(parents=True, exist_ok=True)
    write_model(directory / "model", seed=0)
    write_task(directory / "data", seed=0)
    torch.save(learn().state_dict(), directory / "reward_model.pt")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
