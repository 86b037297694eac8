"""Find word n-grams that training texts share with benchmark questions.

The text is put in Unicode NFKC and lower case. Every run of letters, every run of digits, every Han character and every
kana is then a word. Punctuation, operators and white space only separate words. LaTeX commands of layout, of fractions
and of operators (`\\left`, `\\text`, `\\frac`, `\\cdot`, `\\le`, `\\begin{...}`; `_COMMANDS` lists them) are removed,
and the content of their braces is kept. Any other command is a word, its name. So `$x^2$`, `\\(x_{2}\\)` and `x²` are
all `x 2`, and `\\dfrac{1}{\\sqrt{2}}` is `1 sqrt 2`.

A training text hits a question at n if it

- shares an n-gram with it that is not boilerplate,
- or has at least 70 % of its n-grams, boilerplate or not,
- or, for a question of fewer than n words, equals it word by word, or contains it if it has at least 8 words.

A hit at 13 is also one at 8. An n-gram is boilerplate for a benchmark if it is in more than `common` different
questions of that benchmark, or in more than `common` different training problems.

Sources: GPT-3 (Brown et al. 2020, arXiv 2005.14165, appendix C) removes text that shares a 13-gram of lower-case words
without punctuation, ignores n-grams found in more than 10 training documents, and measures overlap with 8 to 13 words
depending on the benchmark. PaLM (Chowdhery et al. 2022, arXiv 2204.02311, section 8) counts a question as contaminated
if 70 % of its 8-grams were seen.

Not covered: operators (`2 + 3` and `2 - 3` are the same words), paraphrase and translation, reordered or renamed text,
languages without spaces other than Chinese and Japanese, `\\frac12` (the word 12) against `\\frac{1}{2}`, answers and
solutions of the benchmark.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher

SIZES = (8, 13)
NEAR_COPY = 0.7

Words = tuple[int, ...]
_SHORT, _LONG = SIZES
_NO_WORD = -1
# Removed: two texts of one problem differ in them, or their Unicode symbols only separate words.
_COMMANDS = """
    left right middle big Big bigg Bigg bigl bigr Bigl Bigr displaystyle textstyle limits quad qquad hspace vspace
    text textbf textit textrm textup emph mbox mathrm mathbf mathit mathbb mathcal mathsf operatorname boldsymbol
    frac dfrac tfrac cfrac cdot times div pm mp ast star circ degree le leq ge geq leqslant geqslant lt gt ne neq
    ldots cdots dots dotsc dotsb to rightarrow colon mid lvert rvert vert langle rangle item
"""
_LATEX = re.compile(rf"\\\\|\\(?:begin|end)\s*\{{[^{{}}]*\}}|\\(?:{'|'.join(_COMMANDS.split())})(?![A-Za-z])")
_ONE_EACH = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff"
_WORD = re.compile(rf"[{_ONE_EACH}]|[^\W\d_{_ONE_EACH}]+|\d+")


def split_words(text: str) -> list[str]:
    """Return the words of a text, as the module's docstring defines them."""
    return _WORD.findall(unicodedata.normalize("NFKC", _LATEX.sub(" ", text)).lower())


def ngrams(words: Sequence[int], n: int) -> list[Words]:
    """Return all runs of n words in order, with repeats; an empty list if there are fewer than n words."""
    return [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]


@dataclass(frozen=True, slots=True)
class Shared:
    """Hold the parts of one training text that questions of an index have too.

    `segments` are the text's longest stretches in which every 8-gram belongs to some question. Every run of 8 or more
    words that the text shares with a question lies within one of them. `equal` are the questions with exactly the
    text's words.
    """

    segments: tuple[Words, ...]
    equal: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Overlap:
    """Represent one question that a training text hits.

    `run` is the number of words in the longest run that both have. `covered` gives, by n, the share of the question's
    different n-grams that the text has; a question with fewer than n words has 1.0 if the texts are equal, else 0.0.
    `hit` is by n too; the module's docstring defines it.
    """

    question: int
    run: int
    covered: Mapping[int, float]
    hit: Mapping[int, bool]
    equal: bool


@dataclass(frozen=True)
class Boilerplate:
    """Hold the n-grams that prove nothing: too many training problems or questions of a benchmark have them."""

    everywhere: frozenset[Words] = frozenset()
    by_benchmark: Mapping[str, frozenset[Words]] = field(default_factory=dict)

    def among(self, benchmark: str, grams: Iterable[Words]) -> list[Words]:
        """Return those of `grams` that are ignored for a benchmark."""
        own = self.by_benchmark.get(benchmark, frozenset())
        return [gram for gram in grams if gram in self.everywhere or gram in own]


class QuestionIndex:
    """Index the questions of benchmarks by their 8-grams, their 13-grams and their whole text.

    `benchmarks` names the benchmark of each question. N-grams are compared word by word, not by a hash alone.
    """

    def __init__(self, questions: Sequence[str], benchmarks: Sequence[str]) -> None:
        assert len(questions) == len(benchmarks)
        self.benchmarks = tuple(benchmarks)
        self._numbers: dict[str, int] = {}
        self.words: list[Words] = [
            tuple(self._numbers.setdefault(word, len(self._numbers)) for word in split_words(text))
            for text in questions
        ]
        self._whole: dict[Words, list[int]] = defaultdict(list)
        self._having: dict[Words, list[int]] = defaultdict(list)
        for number, words in enumerate(self.words):
            if words:
                self._whole[words].append(number)
        self._grams = [{n: frozenset(ngrams(words, n)) for n in SIZES} for words in self.words]
        for number, grams in enumerate(self._grams):
            for gram in grams[_SHORT] | grams[_LONG]:
                self._having[gram].append(number)

    def shared(self, text: str) -> Shared | None:
        """Return the parts of a training text that questions have too, or None if there are none."""
        number = self._numbers.get
        words = tuple([number(word, _NO_WORD) for word in split_words(text)])
        having = self._having
        starts = [i for i in range(len(words) - _SHORT + 1) if words[i : i + _SHORT] in having]
        equal = tuple(self._whole.get(words, ()))
        return Shared(_segments(words, starts), equal) if starts or equal else None

    def known_grams(self, shared: Shared) -> frozenset[Words]:
        """Return the n-grams of both sizes that a text has in common with any question."""
        grams = (gram for words in shared.segments for n in SIZES for gram in ngrams(words, n))
        return frozenset(gram for gram in grams if gram in self._having)

    def boilerplate(self, found: Iterable[tuple[Hashable, Shared]], common: int) -> Boilerplate:
        """Return the n-grams to ignore, from pairs of a training problem and the parts that one of its texts shares.

        Texts of the same problem (its rollouts, for example) count once, and so do questions with the same words. With
        `common` 0 no n-gram is ignored.
        """
        if not common:
            return Boilerplate()
        problems: dict[Words, set[Hashable]] = defaultdict(set)
        for problem, shared in found:
            for gram in self.known_grams(shared):
                if len(problems[gram]) <= common:
                    problems[gram].add(problem)
        everywhere = frozenset(gram for gram, having in problems.items() if len(having) > common)
        return Boilerplate(everywhere, self._repeated(common))

    def _repeated(self, common: int) -> dict[str, frozenset[Words]]:
        repeated: dict[str, set[Words]] = defaultdict(set)
        for gram, questions in self._having.items():
            if len(questions) > common:
                different = {(self.benchmarks[q], self.words[q]) for q in questions}
                for name, count in Counter(name for name, _ in different).items():
                    if count > common:
                        repeated[name].add(gram)
        return {name: frozenset(grams) for name, grams in repeated.items()}

    def overlaps(self, shared: Shared, boilerplate: Boilerplate) -> list[Overlap]:
        """Return the questions that a text hits at any n, in their order."""
        grams = self.known_grams(shared)
        candidates = {question for gram in grams for question in self._having[gram]} | set(shared.equal)
        judged = (self._judge(question, shared, grams, boilerplate) for question in sorted(candidates))
        return [overlap for overlap in judged if any(overlap.hit.values())]

    def ignored(self, grams: Iterable[Words], boilerplate: Boilerplate) -> dict[str, Counter[int]]:
        """Return, by benchmark and n, how many of `grams` the benchmark has and ignores; each gram is given once."""
        counts = {name: Counter(dict.fromkeys(SIZES, 0)) for name in self.benchmarks}
        for gram in grams:
            for name in {self.benchmarks[question] for question in self._having[gram]}:
                counts[name][len(gram)] += len(boilerplate.among(name, [gram]))
        return counts

    def _judge(self, question: int, shared: Shared, grams: frozenset[Words], boilerplate: Boilerplate) -> Overlap:
        equal, name = question in shared.equal, self.benchmarks[question]
        covered, hit = {}, {}
        for n, own in self._grams[question].items():
            common = own & grams
            covered[n] = len(common) / len(own) if own else float(equal)
            telling = len(common) > len(boilerplate.among(name, common))
            hit[n] = telling or covered[n] >= NEAR_COPY
        hit[_SHORT] |= hit[_LONG]
        run = _longest_run(shared.segments, self.words[question]) if any(hit.values()) else 0
        hit[_LONG] |= _SHORT <= len(self.words[question]) <= run
        return Overlap(question, len(self.words[question]) if equal else run, covered, hit, equal)


def _segments(words: Words, starts: Sequence[int]) -> tuple[Words, ...]:
    """Return the stretches of words that consecutive `starts` of 8-grams cover."""
    segments, first = [], 0
    for i, start in enumerate(starts):
        if i + 1 == len(starts) or starts[i + 1] != start + 1:
            segments.append(words[starts[first] : start + _SHORT])
            first = i + 1
    return tuple(segments)


def _longest_run(segments: Iterable[Words], question: Words) -> int:
    matches = (SequenceMatcher(None, segment, question, autojunk=False).find_longest_match() for segment in segments)
    return max((match.size for match in matches), default=0)
