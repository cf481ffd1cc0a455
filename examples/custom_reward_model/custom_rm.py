"""A reward model of one's own: given to a run as ``--custom-rm-path custom_rm.py``."""

import re

import torch
from torch import Tensor, nn

_SUM = re.compile(r"(\d)(\d)\+(\d)(\d)=\?")
_ANSWER = re.compile(r"\\boxed\{(\d)(\d)\}")


class ColumnScorer(nn.Module):
    """Scores each column of an addition: two digits and the digit below them."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(30, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, columns: Tensor) -> Tensor:
        """[answers, 2 columns, 3 digits] -> one score for each answer."""
        digits = nn.functional.one_hot(columns, 10).float().flatten(2)
        return self.layers(digits).squeeze(-1).sum(-1)


def load_model(model_path: str) -> ColumnScorer:
    """The weights that ``data.py`` learnt from preferences."""
    model = ColumnScorer()
    model.load_state_dict(torch.load(model_path, weights_only=True))
    return model.eval()


class CustomRewardModel:
    """What a run asks; made once, with the value of ``--reward-model-path``."""

    def __init__(self, model_path: str) -> None:
        self.model = load_model(model_path)

    def compute_reward(self, prompts: list[str], responses: list[str]) -> list[float]:
        """How sure the model is of each response: 0 to 1; 0 without an answer of two digits."""
        inputs, answered = self.tokenize(prompts, responses)
        with torch.inference_mode():
            scores = torch.sigmoid(self.model(inputs)) * answered
        return scores.tolist()

    def tokenize(self, prompts: list[str], responses: list[str]) -> tuple[Tensor, Tensor]:
        """Columns of digits, and whether there are any."""
        rows, answered = [], []
        for prompt, response in zip(prompts, responses, strict=True):
            asked, said = _SUM.search(prompt), _ANSWER.search(response)
            found = asked is not None and said is not None
            a, b, c, d = map(int, asked.groups()) if asked and found else (0, 0, 0, 0)
            x, y = map(int, said.groups()) if said and found else (0, 0)
            rows.append([[a, c, x], [b, d, y]])
            answered.append(float(found))
        return torch.tensor(rows), torch.tensor(answered)
