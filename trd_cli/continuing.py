"""Plan rows that go on from the beginning of others: the same ids as in those, and the model's own after them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from trd_cli.config.generating import SamplingOptions
from trd_cli.errors import counted
from trd_cli.planned import Backend, Prefix, Prompt, cannot_ask, new_row
from trd_cli.progress import Progress
from trd_cli.prompting.prefixes import cut, length_before_end, place_in
from trd_cli.records import Cut, Kind, Setting, Trajectory

# The columns of a row that decide if it has a prefix, and those that rows from this prefix are made from.
LENGTH_OF = ("response_token_ids", "error")
PREFIX_OF = (*LENGTH_OF, "stage", "logprobs", "ids_exact", "author")


class Continuer:
    """Plan rows that go on from prefixes, and count the rows that are left out because they are shorter than theirs.

    Such a row had ended before the place that is asked about. It is no error of its own, and would use up those that
    are allowed.
    """

    def __init__(self, backend: Backend, sampling: SamplingOptions, where: Cut) -> None:
        self._backend, self._sampling, self._where = backend, sampling, where
        self._seen = self._left_out = 0

    def has_prefix(self, row: Trajectory) -> bool:
        """Return whether a row is to be gone on with: one without a response is, and ends as an error row."""
        if row.response_token_ids is None:
            return True
        return place_in(length_before_end(row.response_token_ids, self._backend.tokenizer), self._where) > 0

    def rows(
        self,
        source: Trajectory,
        prompt: Prompt,
        *,
        kind: Kind,
        sample_indices: Sequence[int],
        setting: Setting | None = None,
        error: str | None = None,
    ) -> Iterator[Trajectory]:
        """Yield a planned row for each index, in the round of its source; none for a source that is left out.

        With `error` they are error rows, and so they are where prompt and prefix leave no room for a new token.
        """
        self._seen += 1
        prefix = None
        if error is None:
            length = cut(source.response_token_ids, self._backend.tokenizer, self._where)
            if not length:
                self._left_out += 1
                return
            prefix = Prefix.of(source, length)
            error = cannot_ask(self._backend, [*prompt.token_ids, *prefix.token_ids])
        for index in sample_indices:
            yield new_row(
                *(source, prompt, self._backend, self._sampling),
                kind=kind,
                round=source.round,
                sample_index=index,
                parent=source,
                setting=setting,
                prefix=prefix,
                error=error,
            )

    def say_left_out(self, progress: Progress) -> None:
        """Report how many of the rows seen so far are left out."""
        if self._left_out:
            than = "one token" if self._where.tokens is None else counted(self._where.tokens, "token")
            rows = counted(self._seen, "row")
            progress.note(f"left out {self._left_out} of {rows}: a response of less than {than} before its end")
