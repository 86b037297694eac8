"""A recipe after `extends`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, Strict, StrictInt

from trd_cli.config.base import Positive
from trd_cli.config.training import Along, DistillConfig
from trd_cli.recipes.files import Table
from trd_cli.redaction import without_secrets

# Sections that an arm may have of its own beside options of training.
OF_AN_ARM = ("sample", "refine")

Name = Annotated[str, Field(min_length=1)]
Count = Annotated[Positive, Strict()]


class Recipe(BaseModel):
    """A recipe after `extends`, checked. Sections hold what was written, not the defaults."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    setting: Literal["opd", "opsd"]
    student: Name
    teacher: Name | None = None
    rounds: Count = 1
    problems_per_round: Count | None = None
    seeds: tuple[StrictInt, ...] = (0,)
    processes: Count = 1
    reference_arm: str | None = None
    problems: Table
    sample: Table = {}
    refine: Table = {}
    verify: Table = {}
    distill: Table = {}
    eval: Table | None = None
    arms: dict[str, Table]

    def sampling(self, arm: str) -> Table:
        """Options of trd sample for this arm's rollouts."""
        return self.sample | self.arms[arm].get("sample", {})

    def refining(self, arm: str) -> Table:
        """Options of trd refine for this arm's refined rows."""
        return self.refine | self.arms[arm].get("refine", {})

    def training(self, arm: str) -> Table:
        """Options of trd distill for this arm, but for those that the graph fills in."""
        own = {key: value for key, value in self.arms[arm].items() if key not in OF_AN_ARM}
        return self.distill | own | {"setting": self.setting}

    def along(self, arm: str) -> Along:
        """Return the kind of rows that an arm trains along: "refined" (y_r) or "rollout" (y_o)."""
        return DistillConfig.parse(self.training(arm)).along()

    def record(self) -> Table:
        """Return the recipe without keys, as a run directory holds it."""
        return without_secrets(self.model_dump(mode="json", exclude_none=True))

    def as_toml(self) -> str:
        """Return `record` as TOML that extends no other file."""
        import tomli_w

        return tomli_w.dumps(self.record())
