"""Whether two answers that have been read are the same."""

from trd_cli.graders.comparing.comparison import same
from trd_cli.graders.comparing.expressions import Rules

__all__ = ["Rules", "same"]
