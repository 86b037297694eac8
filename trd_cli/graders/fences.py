"""Choose the program that a response means: text in, source out.

The program is the last fence that is Python and is not mere output, usage or tests of a solution in an earlier fence.
Other fences that define names it needs are put before it. A fence is Python if its tag says so, or if it has no tag and
parses.

Not covered: fences in block quotes; names that a program reaches by `eval`.
"""

from __future__ import annotations

import ast
import re
import textwrap
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from trd_cli.graders.inside.names import global_names

_FENCE = re.compile(r"([ \t]*)(`{3,}|~{3,})([^`]*)")
# A fence may open with these marks after text and close with them after a program's last line.
_MARK = "`" * 3
_TAG = re.compile(r"[ \t]*([\w.+#{}-]*)[ \t]*")
# At most this many lines of code that end in marks are tried as the end of the program, because each try parses all of
# it.
_TRIES = 20
_PYTHON = re.compile(r"\{?\.?(python|py|pypy|cpython|ipython|sage)[\d.]*\b", re.IGNORECASE)
# Longer fences count as programs unparsed, because parsing takes time and memory by their length.
_MOST = 100_000
_READING = re.compile(r"\binput\s*\(|\bstdin\b|\bopen\s*\(\s*0|\bfileinput\b|\bos\.read\b")
_WRITING = re.compile(r"\bprint\s*\(|\bstdout\b|\bos\.write\b")


@dataclass(frozen=True)
class Fence:
    """A fenced block: its tag, its content and whether it was closed."""

    tag: str
    source: str
    closed: bool = True

    @cached_property
    def tree(self) -> ast.Module | None:
        """Return the syntax tree, or None if the source does not parse or is too long to try."""
        if len(self.source) > _MOST:
            return None
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return ast.parse(self.source)
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return None

    @property
    def is_python(self) -> bool:
        """Return whether the fence is Python by its tag, or has no tag and parses."""
        if self.tag:
            return _PYTHON.match(self.tag) is not None and not self.source.lstrip().startswith(">>>")
        return bool(self.source.strip()) and (len(self.source) > _MOST or self.tree is not None)

    @cached_property
    def _names(self) -> tuple[set[str], set[str]]:
        """Return the names it uses and those it defines."""
        try:
            return global_names(self.source) if self.tree else (set(), set())
        except (SyntaxError, ValueError, RecursionError, MemoryError):
            return set(), set()

    @property
    def defined(self) -> set[str]:
        """Return the names it defines, including methods of `Solution`."""
        return self._names[1] | self.methods

    @cached_property
    def methods(self) -> set[str]:
        """Return the methods of its class `Solution`."""
        return {
            part.name
            for node in (self.tree.body if self.tree else ())
            if isinstance(node, ast.ClassDef) and node.name == "Solution"
            for part in node.body
            if isinstance(part, ast.FunctionDef | ast.AsyncFunctionDef)
        }

    @property
    def needed(self) -> set[str]:
        """Return the names it uses without defining them, and those it imports from other modules."""
        imported = {
            alias.name
            for node in (self.tree.body if self.tree else ())
            if isinstance(node, ast.ImportFrom) and not node.level
            for alias in node.names
        }
        return (self._names[0] - self._names[1]) | imported

    @property
    def is_output(self) -> bool:
        """Return whether it only shows values: every statement is an expression that calls nothing."""
        body = self.tree.body if self.tree else [ast.Pass()]
        return all(isinstance(node, ast.Expr) and not _does(node.value) for node in body)

    @property
    def is_testing(self) -> bool:
        """Return whether it asserts (at the top, in test functions or in test cases) and defines nothing else."""
        parts = [_role(node) for node in (self.tree.body if self.tree else ())]
        return "tests" in parts and "program" not in parts

    @property
    def runs(self) -> bool:
        """Return whether running it has a visible effect: it reads, writes, or calls what it defines."""
        return any(
            _READING.search(text) or _WRITING.search(text) or self._mentions(node)
            for node in self._acting
            for text in (ast.unparse(node),)
        )

    @property
    def reads(self) -> bool:
        """Return whether it reads standard input, in a function or not."""
        return _READING.search(self.source) is not None

    @property
    def writes(self) -> bool:
        """Return whether it writes to standard output, in a function or not."""
        return _WRITING.search(self.source) is not None

    @property
    def _acting(self) -> list[ast.stmt]:
        quiet = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Import | ast.ImportFrom
        return [node for node in (self.tree.body if self.tree else ()) if not isinstance(node, quiet)]

    def _mentions(self, node: ast.stmt) -> bool:
        return not isinstance(node, ast.Assign | ast.AnnAssign) and any(
            isinstance(part, ast.Name) and part.id in self.functions for part in ast.walk(node)
        )

    @cached_property
    def functions(self) -> set[str]:
        """Return the functions and classes it defines."""
        kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
        return {node.name for node in (self.tree.body if self.tree else ()) if isinstance(node, kinds)}

    def quiet(self) -> Fence:
        """Return its definitions without the statements that have a visible effect."""
        body = [node for node in (self.tree.body if self.tree else ()) if not self._is_seen(node)]
        return Fence(self.tag, "\n".join(map(ast.unparse, body)))

    def _is_seen(self, node: ast.stmt) -> bool:
        text = ast.unparse(node) if node in self._acting else ""
        return bool(_WRITING.search(text)) or (bool(text) and self._mentions(node))


def _does(value: ast.expr) -> bool:
    return any(isinstance(node, ast.Call | ast.Await | ast.Yield | ast.NamedExpr) for node in ast.walk(value)) and not (
        # A complexity such as O(n log n) is no call.
        isinstance(value, ast.Call) and isinstance(value.func, ast.Name) and value.func.id in ("O", "Theta", "Omega")
    )


def _role(node: ast.stmt) -> str:
    if isinstance(node, ast.Assert):
        return "tests"
    if isinstance(node, ast.FunctionDef):
        return "tests" if node.name.startswith("test") else "check" if node.name == "check" else "program"
    if isinstance(node, ast.ClassDef):
        return (
            "tests"
            if any("TestCase" in ast.unparse(base) for base in node.bases) or node.name.startswith("Test")
            else "program"
        )
    if isinstance(node, ast.Import | ast.ImportFrom):
        return "import"
    text = ast.unparse(node)
    if isinstance(node, ast.For | ast.With | ast.If | ast.Try) and "assert" in text:
        return "tests"
    return "tests" if "unittest.main" in text or "pytest.main" in text else "other"


def program_of(text: str, asked: Collection[str] = ()) -> str | None:
    """Return the program that a text holds, or None if it has no fence.

    `asked` are the names that the tests call, if any. The last fence that defines one of them, if any does, is the
    program.
    """
    fences = list(fences_of(text))
    fences = [fence for fence in fences if fence.closed] or fences
    if not fences:
        return None
    python = [fence for fence in fences if fence.is_python]
    if not python:
        readable = [fence for fence in fences if fence.tree is not None and fence.source.strip()]
        return (readable or fences)[-1].source
    if len(python) == 1:
        return python[0].source
    return _chosen(python, asked)


def _chosen(python: Sequence[Fence], asked: Collection[str]) -> str:
    asked = set(asked)
    defining = [n for n, fence in enumerate(python) if fence.defined & asked]
    place = len(python) - 1
    if defining and not (python[place].tree is None and place > defining[-1]):
        place = defining[-1]
    else:
        while place > 0 and _is_beside(python[place], python[:place], is_script=not asked):
            place -= 1
    return _joined(python, place, is_script=not asked)


def _is_beside(fence: Fence, earlier: Sequence[Fence], is_script: bool) -> bool:
    """Return whether a fence is output, usage or tests of an earlier one."""
    if fence.tree is None:
        return False
    if fence.is_output:
        return True
    defined = set().union(*(each.defined for each in earlier))
    needs = fence.needed & defined
    if fence.is_testing:
        return True
    if not needs or fence.tree is None:
        return False
    if not is_script:
        return not fence.functions
    whole = [each for each in earlier if each.defined & needs and each.runs and each.writes]
    return any(each.reads or not fence.reads for each in whole)


def _joined(python: Sequence[Fence], place: int, is_script: bool) -> str:
    """Return the fence at `place` after the fences that define what it needs."""
    chosen = python[place]
    missing, parts = set(chosen.needed), {}
    order = [*range(place - 1, -1, -1), *range(place + 1, len(python))]
    for n in order:
        fence = python[n]
        if not fence.defined & missing or fence.is_testing or (n > place and not fence.functions & missing):
            continue
        missing = (missing - fence.defined) | fence.needed
        keeps_quiet = fence.runs and (n > place or not is_script or (chosen.reads and not fence.reads))
        parts[n] = fence.quiet() if keeps_quiet else fence
    sources = [parts[n].source for n in sorted(parts)]
    # Imports from `__future__` must come first.
    future = [line for line in chosen.source.split("\n") if sources and line.startswith("from __future__ ")]
    rest = "\n".join(line for line in chosen.source.split("\n") if line not in future)
    return "\n\n".join([*future, *sources, rest])


def fences_of(text: str) -> Iterator[Fence]:
    """Yield the fenced blocks of a text without their fences' indentation; the last one may be unclosed.

    A fence closes as in CommonMark, with at least as many marks as it opened with and nothing after them. It also
    closes with marks after the last line of a program that is complete with that line.
    """
    content: list[str] = []
    fence, tag, indent, in_text, tries = "", "", 0, False, _TRIES
    for line in text.split("\n"):
        mark = _FENCE.fullmatch(line.rstrip())
        if not fence:
            behind = None if mark else _opened_behind_text(line)
            if mark or behind:
                fence, tag = (mark[2], mark[3].strip()) if mark else behind
                indent, content, in_text = len(mark[1]) if mark else 0, [], mark is None
        elif mark and mark[2].startswith(fence) and not mark[3] and (in_text or len(mark[1]) <= indent + 3):
            yield _fence(tag, content, in_text)
            fence = ""
        else:
            content.append(_dedented(line, indent))
            code = _before_marks(line, fence) if tries else None
            if code is not None:
                tries -= 1
                ended = _fence(tag, [*content[:-1], _dedented(code, indent)], in_text)
                if ended.tree is not None:
                    yield ended
                    fence = ""
    if fence:
        yield _fence(tag, content, in_text, closed=False)


def _opened_behind_text(line: str) -> tuple[str, str] | None:
    """Return the marks and the tag of a fence that opens at the end of a line of text; None for any other line."""
    before, mark, after = line.rstrip().partition(_MARK)
    rest = after.lstrip("`")
    tag = _TAG.fullmatch(rest)
    return (_MARK + "`" * (len(after) - len(rest)), tag[1]) if mark and before.strip() and tag else None


def _before_marks(line: str, fence: str) -> str | None:
    """Return the code before marks at a line's end that could close the fence; None for any other line."""
    ended = line.rstrip()
    code = ended.rstrip("`")
    could = ended.endswith(fence) and code.strip() and "`" not in code and "#" not in code
    return code if could else None


def _fence(tag: str, content: list[str], in_text: bool, closed: bool = True) -> Fence:
    source = "\n".join(content)
    return Fence(tag, textwrap.dedent(source) if in_text else source, closed)


def _dedented(line: str, indent: int) -> str:
    """Return a line without its fence's indentation, as far as it has any, and without a carriage return."""
    return line[min(indent, len(line) - len(line.lstrip(" \t"))) :].removesuffix("\r")
