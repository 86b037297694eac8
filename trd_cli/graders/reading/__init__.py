"""From the text of an answer to what it means."""

from trd_cli.graders.reading.kinds import Reading, Value
from trd_cli.graders.reading.structure import read

__all__ = ["Reading", "Value", "read"]
