"""Signs that a text was written with a reference solution in view: talk of it, and long runs of words taken from it.

Talk of a reference is one of these phrases in the response, as whole words, in any case, unless the problem has it too:

- "reference", "official", "ground truth", "gold" or "supplied", directly before "solution", "proof", "derivation",
  "implementation", "answer", "code" or "program", or their plurals;
- "given" or "provided" directly before "solution", "proof", "derivation" or "implementation", and "provided answer";
  but not "given answer" or "provided code", for which problems without a reference give cause, and no "answer choice";
- "the reference" directly before says, states, shows, gives, uses, has, does, notes, suggests, claims, mentions or
  reads;
- "according to", "as in", "match(es)", "consistent with", "agrees with", "compare(d) with" or "compare(d) to" directly
  before "the reference", "the solution provided" or "the solution given".

An n-gram is copied if the response has n consecutive words of the reference that neither the problem nor the student's
earlier text has. `datasets.ngrams` splits the words: without punctuation, operators, case and LaTeX layout.

Not covered: other languages, hints at a reference in other words ("as we know the answer must be 42"), paraphrase. A
text in which "provided solution" means something else counts all the same: compare with the share in texts written
without a reference.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from trd_cli.datasets.ngrams import SIZES, Words, ngrams, split_words

_TEXTS = r"(?:solutions?|proofs?|derivations?|implementations?)"
_PATTERNS = (
    rf"(?:reference|official|ground[ -]truth|gold|supplied)\s+(?:{_TEXTS}|answers?(?!\s+choice)|codes?|programs?)",
    rf"(?:given|provided)\s+{_TEXTS}",
    r"provided\s+answers?(?!\s+choice)",
    r"the\s+reference\s+(?:says|states|shows|gives|uses|has|does|notes|suggests|claims|mentions|reads)",
    r"(?:according\s+to|as\s+in|match(?:es)?|consistent\s+with|agrees\s+with|compared?\s+(?:with|to))\s+"
    r"the\s+(?:reference|solution\s+(?:provided|given))",
)
_TELLING = ("reference", "official", "ground", "gold", "supplied", "given", "provided")
_TALK = re.compile("|".join(rf"\b(?:{pattern})\b" for pattern in _PATTERNS), re.IGNORECASE)


def talk_of_reference(response: str, problem: str) -> list[str]:
    """Return the phrases that talk of a reference in `response` but not in `problem`, in lower case, single-spaced."""
    own = set(_phrases(problem))
    return [phrase for phrase in _phrases(response) if phrase not in own]


def _phrases(text: str) -> Iterable[str]:
    # Every pattern has one of these words, and finding a word is far cheaper than trying all patterns everywhere.
    lower = text.lower()
    if not any(word in lower for word in _TELLING):
        return ()
    return (" ".join(match.group().lower().split()) for match in _TALK.finditer(text))


def copied_ngrams(response: str, reference: str, known: Iterable[str], sizes: Iterable[int] = SIZES) -> dict[int, bool]:
    """Map each n of `sizes` to True if `response` has an n-gram of `reference` that no `known` text has."""
    taken_from = split_words(reference)
    numbers = {word: i for i, word in enumerate(dict.fromkeys(taken_from))}

    def shared(text: str) -> dict[int, set[Words]]:
        """Return by n the n-grams that a text shares with the reference."""
        words = [numbers.get(word, -1) for word in split_words(text)]
        # An iterator, not a list: a long response has thousands and shares few.
        return {
            n: wanted.intersection(zip(*(words[i:] for i in range(n)), strict=False))
            for n, wanted in of_reference.items()
            if wanted
        }

    ids = [numbers[word] for word in taken_from]
    of_reference = {n: set(ngrams(ids, n)) for n in sizes}
    candidates = shared(response)
    if any(candidates.values()):  # Rarely true, so the other texts are rarely read.
        for grams_of in map(shared, known):
            for n, grams in grams_of.items():
                candidates[n] -= grams
    return {n: bool(candidates.get(n)) for n in of_reference}
