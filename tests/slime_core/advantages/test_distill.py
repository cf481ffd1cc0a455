import torch
from slime_core.advantages.distill import distilled


def test_tokens_the_teacher_likes_better_gain_by_hand():
    advantages, policy = torch.tensor([1.0, 1.0]), torch.tensor([-1.0, -2.0])
    teacher = torch.tensor([-0.5, -4.0])
    assert distilled(advantages, policy, teacher, 0.5).tolist() == [1.25, 0.0]


def test_gradients():
    inputs = [torch.randn(4, dtype=torch.float64, requires_grad=True) for _ in range(3)]
    assert torch.autograd.gradcheck(lambda a, p, t: distilled(a, p, t, 0.7), inputs)
