"""Two mirrored tasks on a line, a small policy for them, and teachers of them by REINFORCE.

Axes: N trajectories, T = 20 steps, F features of a state.

A walk starts at +2 and is to end at −3, or starts at −2 and is to end at +3. A step adds the action, a number drawn
from the policy's normal distribution; its cost is the squared distance to the target afterwards. The policy sees
place, target and time, so one policy can do both tasks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.distributions import Normal

STEPS = 20
# The policy has 4,546 parameters.
_WIDTH = 64
# The largest mean of an action: a target is ten steps away at least.
_REACH = 0.5
# The least and the largest standard deviation of an action.
_SPREAD = (0.1, 1.0)
_TEACHER_RATE = 3e-3
_CLIP = 1.0


@dataclass(frozen=True)
class Task:
    """Hold the start and the target of a walk."""

    start: float
    target: float


TASKS = (Task(2.0, -3.0), Task(-2.0, 3.0))


class Policy(nn.Module):
    """A network of two hidden layers, from the features of states to a normal distribution over actions."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, _WIDTH), nn.Tanh(), nn.Linear(_WIDTH, _WIDTH), nn.Tanh())
        self.output = nn.Linear(_WIDTH, 2)

    def forward(self, features: Tensor) -> Normal:
        """Return the distributions of the actions at states (..., F)."""
        mean, raw = self.output(self.body(features)).unbind(-1)
        least, largest = _SPREAD
        return Normal(_REACH * torch.tanh(mean), least + (largest - least) * torch.sigmoid(raw), validate_args=False)


@dataclass(frozen=True)
class Walks:
    """Hold trajectories: the features of the states (N, T, F), the actions (N, T) and the places after them (N, T)."""

    features: Tensor
    actions: Tensor
    places: Tensor
    targets: Tensor

    def logprobs(self, policy: Policy) -> Tensor:
        """Return the log-probabilities of the actions under a policy, shape (N, T)."""
        return policy(self.features).log_prob(self.actions)

    def split(self, size: int) -> Iterator[Walks]:
        """Yield the walks in order, `size` at a time."""
        columns = (self.features, self.actions, self.places, self.targets)
        return (Walks(*parts) for parts in zip(*(column.split(size) for column in columns), strict=True))

    def error(self) -> float:
        """Return the mean distance of the ends from their targets."""
        return float((self.places[:, -1] - self.targets).abs().mean())


@torch.no_grad()
def walk(policy: Policy, tasks: Sequence[Task], random: torch.Generator) -> Walks:
    """Let a policy walk once for each entry of `tasks`."""
    targets_N = torch.tensor([task.target for task in tasks])
    place_N = torch.tensor([task.start for task in tasks])
    features, actions, places = [], [], []
    for t in range(STEPS):
        seen_NF = torch.stack([place_N / 3, targets_N / 3, torch.full_like(place_N, t / STEPS)], dim=-1)
        drawn = policy(seen_NF)
        action_N = drawn.mean + drawn.stddev * torch.randn(len(tasks), generator=random)
        place_N = place_N + action_N
        features.append(seen_NF)
        actions.append(action_N)
        places.append(place_N)
    return Walks(torch.stack(features, 1), torch.stack(actions, 1), torch.stack(places, 1), targets_N)


def seeded_policy(seed: int) -> Policy:
    """Return a policy with initial weights of a seed. The global generator is left as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Policy()


def reinforce(task: Task, seed: int, updates: int, batch: int) -> Policy:
    """Return a teacher of one task: REINFORCE with costs to come, less their mean over the batch at each step."""
    policy, random = seeded_policy(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=_TEACHER_RATE)
    for _ in range(updates):
        walks = walk(policy, [task] * batch, random)
        costs_NT = (walks.places - walks.targets[:, None]).square() / STEPS
        to_come_NT = costs_NT.flip(1).cumsum(1).flip(1)
        advantages_NT = to_come_NT - to_come_NT.mean(dim=0)
        advantages_NT = advantages_NT / (advantages_NT.std(dim=0) + 1e-6)
        optimizer.zero_grad()
        (advantages_NT * walks.logprobs(policy)).sum(dim=1).mean().backward()
        nn.utils.clip_grad_norm_(policy.parameters(), _CLIP)
        optimizer.step()
    return policy.requires_grad_(False)
