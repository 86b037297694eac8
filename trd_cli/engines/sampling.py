"""Draw one token a row from logits, reproducibly.

Axes: n rows, V vocabulary, M candidates kept. A draw inverts the cumulative distribution, in the order of token ids, at
a uniform number from the row's own generator. So a row's tokens do not depend on its neighbours, and a rounding
difference in the logits can change a draw only where that number falls on a boundary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from trd_cli.records import Sampling


def draw(logits_nV: torch.Tensor, sampling: Sampling, uniforms: Sequence[float]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return token ids (n,) int64 and their log-probabilities (n,) float32.

    The log-probabilities are of the unfiltered distribution at temperature 1. `uniforms` has one number in [0, 1) a
    row; greedy rows ignore theirs. Top-k is applied before top-p, which counts the mass that top-k left, as vLLM and
    transformers do.
    """
    logits_nV = logits_nV.float()
    token_n = logits_nV.argmax(dim=-1) if sampling.temperature == 0 else _draw_filtered(logits_nV, sampling, uniforms)
    chosen_n = logits_nV.gather(1, token_n[:, None]).squeeze(1)
    return token_n, chosen_n - logits_nV.logsumexp(dim=-1)


def _draw_filtered(logits_nV: torch.Tensor, sampling: Sampling, uniforms: Sequence[float]) -> torch.Tensor:
    candidates_nM, ids_nM = _candidates(logits_nV, sampling)
    if ids_nM is not None:
        ids_nM, order_nM = ids_nM.sort(dim=-1)
        candidates_nM = candidates_nM.gather(1, order_nM)
    exact = torch.float32 if logits_nV.device.type == "mps" else torch.float64  # MPS has no float64
    cumulative_nM = candidates_nM.to(exact).cumsum(dim=-1)
    targets_n = torch.tensor(uniforms, dtype=exact, device=logits_nV.device) * cumulative_nM[:, -1]
    place_n1 = torch.searchsorted(cumulative_nM, targets_n[:, None], right=True).clamp_(max=candidates_nM.shape[1] - 1)
    return (place_n1 if ids_nM is None else ids_nM.gather(1, place_n1)).squeeze(1)


def _candidates(logits_nV: torch.Tensor, sampling: Sampling) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Return probabilities (n, M), zero for filtered tokens, and their token ids (None: all, in order)."""
    vocabulary = logits_nV.shape[1]
    kept = min(sampling.top_k or vocabulary, vocabulary)
    if kept == vocabulary and sampling.top_p >= 1:
        return (logits_nV / sampling.temperature).softmax(dim=-1), None
    top_nM, ids_nM = logits_nV.topk(kept, dim=-1)
    probability_nM = (top_nM / sampling.temperature).softmax(dim=-1)
    mass_before_nM = probability_nM.cumsum(dim=-1) - probability_nM
    return probability_nM.masked_fill(mass_before_nM >= sampling.top_p, 0.0), ids_nM
