"""What the log says of a step, gathered over its micro-batches and over all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from trd_cli.training.batches import Batch, Example
from trd_cli.training.loss import Figures

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MEANS = tuple(name for name in Figures._fields if name != "divergence")


@dataclass
class StepFigures:
    """Sums over the micro-batches of one process; `merge` adds another process's."""

    loss: float = 0.0
    tokens: int = 0
    divergence: list[torch.Tensor] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(self, loss: float, figures: Figures, batch: Batch, rows: Sequence[Example]) -> None:
        """Take in a micro-batch of `rows`; its tensors are moved to the CPU."""
        self.loss += loss
        self.tokens += len(batch.response_N)
        self.divergence.append(figures.divergence.cpu())
        for name in _MEANS:
            values_N = getattr(figures, name)
            known_N = ~values_N.isnan()
            self.sums[name] += values_N[known_N].sum().item()
            self.counts[name] += int(known_N.sum())
        row_N = batch.row_N
        sums_B = torch.zeros(len(rows), dtype=figures.divergence.dtype, device=row_N.device)
        means_B = sums_B.index_add(0, row_N, figures.divergence) / torch.bincount(row_N, minlength=len(rows))
        for row, mean in zip(rows, means_B.tolist(), strict=True):
            if row.parent_verdict is not None:
                self.sums[f"loss_parent_{row.parent_verdict}"] += mean
                self.counts[f"loss_parent_{row.parent_verdict}"] += 1

    def merge(self, other: StepFigures) -> None:
        self.loss += other.loss
        self.tokens += other.tokens
        self.divergence += other.divergence
        for name, value in other.sums.items():
            self.sums[name] += value
            self.counts[name] += other.counts[name]

    def summary(self) -> dict[str, float]:
        """Quantiles over the step's positions, and means over positions (over rows for `loss_parent_…`)."""
        divergence_N = torch.cat(self.divergence).sort().values
        last = len(divergence_N) - 1
        found = {f"divergence_{name}": divergence_N[round(q * last)].item() for name, q in _QUANTILES.items()}
        found["divergence_max"] = divergence_N[last].item()
        return found | {name: self.sums[name] / n for name, n in sorted(self.counts.items()) if n}
