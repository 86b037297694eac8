"""Gather the figures that the log reports of a step, over its micro-batches and over all processes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from trd_cli.losses.fused import Figures
from trd_cli.training.batches import Batch, Example
from trd_cli.training.tenths import TENTHS, tenth_of

_QUANTILES = {"p50": 0.5, "p95": 0.95, "p99": 0.99}
_MEANS = tuple(name for name in Figures._fields if name != "divergence")


@dataclass
class StepFigures:
    """Hold sums over the micro-batches of one process; `merge` adds another process's."""

    loss: float = 0.0
    tokens: int = 0
    divergence: list[torch.Tensor] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    counts: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    # By the attempt's verdict (2, TENTHS): in each tenth the sum of the divergence and the number of positions.
    tenths: dict[str, torch.Tensor] = field(default_factory=dict)

    def add(self, loss: float, figures: Figures, batch: Batch, rows: Sequence[Example]) -> None:
        """Add a micro-batch of rows, or parts of rows; its tensors are moved to the CPU."""
        self.loss += loss
        self.tokens += len(batch.response_N)
        self.divergence.append(figures.divergence.cpu())
        for name in _MEANS:
            values_N = getattr(figures, name)
            known_N = ~values_N.isnan()
            self.sums[name] += values_N[known_N].sum().item()
            self.counts[name] += int(known_N.sum())
        own_N = torch.from_numpy(np.concatenate([row.weights for row in rows])).to(figures.divergence)
        zeros_B = own_N.new_zeros(len(rows))
        sums_B = zeros_B.index_add(0, batch.row_N, figures.divergence * own_N)
        means_B = sums_B / own_N.new_tensor([row.weight for row in rows])
        for row, mean in zip(rows, means_B.tolist(), strict=True):
            for name in _sorts(row):
                self.sums[name] += mean
                self.counts[name] += row.part == 0
        self._add_tenths(rows)

    def _add_tenths(self, rows: Sequence[Example]) -> None:
        """Add the last micro-batch's divergence by position in the response; rows follow each other, as collated.

        Where the turns of a row are read one by one, each counts as a response.
        """
        by_row = self.divergence[-1].double().split([len(row.scored) for row in rows])
        for row, divergence_S in zip(rows, by_row, strict=True):
            if row.parent_verdict is not None:
                tenth_S = torch.from_numpy(tenth_of(row.scored, len(row.response_ids)))
                both_2S = torch.stack([divergence_S, torch.ones_like(divergence_S)])
                self._tenths_of(row.parent_verdict).index_add_(1, tenth_S, both_2S)

    def _tenths_of(self, verdict: str) -> torch.Tensor:
        return self.tenths.setdefault(verdict, torch.zeros(2, TENTHS, dtype=torch.float64))

    def merge(self, other: StepFigures) -> None:
        self.loss += other.loss
        self.tokens += other.tokens
        self.divergence += other.divergence
        for name, value in other.sums.items():
            self.sums[name] += value
            self.counts[name] += other.counts[name]
        for verdict, sums_2T in other.tenths.items():
            self._tenths_of(verdict).add_(sums_2T)

    def by_tenth(self) -> dict[str, list[float]]:
        """Return, for each verdict of the attempt, two lists by tenth of the response.

        They hold the mean divergence (0 for no positions) and the number of positions.
        """
        found: dict[str, list[float]] = {}
        for verdict, (sum_T, count_T) in sorted(self.tenths.items()):
            found[f"divergence_tenths_{verdict}"] = (sum_T / count_T.clamp(min=1)).tolist()
            found[f"positions_tenths_{verdict}"] = count_T.int().tolist()
        return found

    def summary(self) -> dict[str, float]:
        """Return quantiles over the step's positions, and means over positions (over rows for `loss_…`)."""
        divergence_N = torch.cat(self.divergence).sort().values
        last = len(divergence_N) - 1
        found = {f"divergence_{name}": divergence_N[round(q * last)].item() for name, q in _QUANTILES.items()}
        found["divergence_max"] = divergence_N[last].item()
        return found | {name: self.sums[name] / n for name, n in sorted(self.counts.items()) if n}


def _sorts(row: Example) -> list[str]:
    """Return the names of the mean losses that a row is counted in."""
    by_verdict = [f"loss_parent_{row.parent_verdict}"] if row.parent_verdict is not None else []
    return by_verdict + ([f"loss_{row.mixed_as}"] if row.mixed_as is not None else [])
