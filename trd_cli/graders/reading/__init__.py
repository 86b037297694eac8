"""Read the meaning of an answer from its text."""

from trd_cli.graders.reading.kinds import Reading, Value
from trd_cli.graders.reading.structure import read

__all__ = ["Reading", "Value", "read"]
