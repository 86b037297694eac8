"""From the text of an answer to what it means."""

from __future__ import annotations

from trd_cli.graders.references import reference_answer

__all__ = ["reference_answer"]
