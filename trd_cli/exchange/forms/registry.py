"""Name the forms of responses made elsewhere."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from trd_cli.config.exchanging import ImportRolloutsConfig, RolloutForm
from trd_cli.exchange.attempts import Form
from trd_cli.exchange.forms import evalplus, lm_eval, messages, nemo_skills, openai_batch, verifiers

# Each opens the form of one file: what stands beside the file is read then.
FORMS: dict[RolloutForm, Callable[[ImportRolloutsConfig, Path], Form]] = {
    "messages": messages.open_form,
    "verifiers": verifiers.open_form,
    "lm-eval": lm_eval.open_form,
    "nemo-skills": nemo_skills.open_form,
    "openai-batch": openai_batch.open_form,
    "evalplus": evalplus.open_form,
}
