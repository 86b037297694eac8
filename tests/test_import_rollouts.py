"""`trd data import-rollouts` in use: files in the forms of other programs become sets for all later commands."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

import pytest
from conftest import Trd
from support.sets import by_id, rows_of
from support.tiny import CHAT_TEMPLATE, END, build_model, write_bare_model, write_tokenizer

from trd_cli.config.exchanging import RolloutForm
from trd_cli.exchange.forms.registry import FORMS
from trd_cli.models import resolve_model
from trd_cli.records import UNKNOWN, Problem, Trajectory
from trd_cli.trajectories.shards import write_problems

DATA = Path(os.environ.get("TRD_DATA", Path(__file__).parents[2] / "shared" / "data"))
needs_data = pytest.mark.skipif(not (DATA / "rollouts").is_dir(), reason=f"no {DATA / 'rollouts'}: set TRD_DATA")
CPU = ("--dtype", "float32", "--device", "cpu")

QUESTION = "Ann has 2 apples and buys 3. How many has she?"
ASKED = f"Solve the problem.\n\n{QUESTION}\n\nPut the answer in \\boxed{{}}."
RIGHT = "She has 2 + 3 = 5 apples.\n\n\\boxed{5}  "
WRONG = "\n2 times 3 is 6: \\boxed{6}"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a model without weights: an import needs its tokenizer and chat template alone."""
    return write_bare_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Return a tiny student and a tiny teacher with weights."""
    root = tmp_path_factory.mktemp("pair")
    return build_model(root / "student"), build_model(root / "teacher", seed=1)


def lines(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSONL; a text is a line as it is."""
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str, **more: str) -> dict[str, str]:
    return {"role": "assistant", "content": text, **more}


def simple(path: Path, *responses: Any, **more: Any) -> Path:
    """Write a file with one problem and a row for each response."""
    return lines(path, [{"problem": QUESTION, "response": each, "answer": "5", **more} for each in responses])


@dataclass(frozen=True)
class Case:
    """A file in a form, what stands beside it, and the columns of its first row."""

    form: RolloutForm
    name: str
    rows: Sequence[Any]
    expected: dict[str, Any]
    count: int = 2
    beside: dict[str, Any] = field(default_factory=dict)
    options: tuple[str, ...] = ()


SAMPLED = {"temperature": 0.7, "top_p": 0.9, "top_k": 20, "max_tokens": 512}
CASES = [
    Case(
        "messages",
        "chats.jsonl",
        [
            {"messages": [{"role": "system", "content": "Be brief."}, user(QUESTION), assistant(RIGHT)], "answer": 5},
            {"conversations": [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": WRONG}]},
        ],
        {"problem": QUESTION, "reference_answer": "5", "source": "chats", "temperature": UNKNOWN},
    ),
    Case(
        "messages",
        "columns.jsonl",
        [
            {
                "prompt": [user(QUESTION)],
                "completion": [assistant(RIGHT)],
                "solution": "2 + 3 = \\boxed{5}",
                "finish_reason": "stop",
                "model": "writer-7b",
                **SAMPLED,
            },
            {"prompt": QUESTION, "responses": [WRONG], "finish_reason": "length"},
        ],
        {"problem": QUESTION, "reference_answer": "5", "reference_solution": "2 + 3 = \\boxed{5}", **SAMPLED},
    ),
    Case(
        "verifiers",
        "results.jsonl",
        [
            {
                "example_id": 0,
                "prompt": [{"role": "system", "content": "Be brief."}, user(QUESTION)],
                "completion": [assistant(RIGHT)],
                "answer": "5",
                "info": {"solution": "2 + 3 = 5"},
                "reward": 1.0,
                "is_truncated": False,
                "error": None,
            },
            {"example_id": 0, "prompt": QUESTION, "completion": WRONG, "answer": "5", "is_truncated": True},
        ],
        {"reference_solution": "2 + 3 = 5", "source": "apples", "model": "writer-7b", "top_k": 20, "max_tokens": 512},
        beside={
            "metadata.json": {
                "env_id": "apples",
                "model": "writer-7b",
                "sampling_args": {
                    "temperature": 0.7,
                    "top_p": 0.9,
                    "max_completion_tokens": 512,
                    "extra_body": {"top_k": 20},
                },
            }
        },
    ),
    Case(
        "lm-eval",
        "samples_apples_2026-01-02T03-04-05.678901.jsonl",
        [
            {
                "doc_id": 0,
                "doc": {"question": QUESTION, "answer": "2 + 3 = 5\n#### 5"},
                "target": "2 + 3 = 5\n#### 5",
                "arguments": {
                    "gen_args_0": {
                        "arg_0": json.dumps([user(ASKED)]),
                        "arg_1": {"until": ["Q:"], "do_sample": False, "temperature": 0.7, "max_gen_toks": 512},
                    }
                },
                "resps": [[RIGHT, WRONG]],
                "filtered_resps": [found],
                "filter": name,
            }
            for name, found in (("strict-match", "5"), ("flexible-extract", "5"))
        ],
        {"reference_answer": "5", "source": "apples", "model": "writer-7b", "temperature": 0.0, "max_tokens": 512},
        beside={"results_2026-01-02T03-04-05.678901.json": {"model_name": "writer-7b"}},
    ),
    Case(
        "nemo-skills",
        "output-rs0.jsonl",
        [
            {
                "id": "apples-7",
                "problem": QUESTION,
                "expected_answer": "5",
                "generation": "\\boxed{5}",
                "_full_generation": RIGHT,
                "finish_reason": "stop",
                "num_generated_tokens": 9,
            },
            {"problem": QUESTION, "expected_answer": "5", "id": "apples-7", "generation": WRONG},
        ],
        {"reference_answer": "5", "problem_id": "output-rs0-apples-7", "finish_reason": "stop"},
    ),
    Case(
        "openai-batch",
        "output.jsonl",
        [
            {
                "id": "batch_req_1",
                "custom_id": "a",
                "response": {
                    "status_code": 200,
                    "body": {
                        "model": "writer-7b-0711",
                        "choices": [
                            {"index": 0, "message": assistant(RIGHT), "finish_reason": "stop"},
                            {"index": 1, "message": assistant(WRONG), "finish_reason": "length"},
                        ],
                    },
                },
                "error": None,
            }
        ],
        {"problem": QUESTION, "model": "writer-7b-0711", "finish_reason": "stop", "temperature": 0.7, "top_k": UNKNOWN},
        beside={
            "requests.jsonl": {
                "custom_id": "a",
                "method": "POST",
                "url": "/v1/chat/completions",
                "body": {"model": "writer-7b", "messages": [user(QUESTION)], "temperature": 0.7},
            }
        },
        options=("--requests", "requests.jsonl"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.form} {case.name}")
def test_each_form_gives_its_responses_byte_by_byte_with_the_fields_that_it_has(
    case: Case, model: Path, tmp_path: Path, ok: Trd
) -> None:
    file = lines(tmp_path / case.name, case.rows)
    for name, content in case.beside.items():
        (tmp_path / name).write_text(json.dumps(content))
    options = [str(tmp_path / word) if word.endswith(".jsonl") else word for word in case.options]
    ok("data", "import-rollouts", file, "--format", case.form, "-m", model, *options, "--out", tmp_path / "y_o")
    rows = sorted(rows_of(tmp_path / "y_o"), key=lambda row: row.sample_index)
    assert [row.response for row in rows] == [RIGHT, WRONG]
    assert [row.sample_index for row in rows] == [0, 1]
    assert {row.problem_id for row in rows} == {rows[0].problem_id}
    assert {name: getattr(rows[0], name) for name in case.expected} == case.expected


def test_the_table_of_forms_has_every_form_and_each_but_evalplus_has_a_case() -> None:
    assert set(FORMS) == set(get_args(RolloutForm)) == {case.form for case in CASES} | {"evalplus"}


# Rows


def test_a_row_has_the_prompt_that_trd_sample_asks_and_the_ids_of_the_text_with_its_end(
    pair: tuple[Path, Path], tmp_path: Path, ok: Trd
) -> None:
    student, _ = pair
    write_problems(tmp_path / "p.parquet", [Problem("p1", "s", "math", QUESTION, "5")])
    file = simple(tmp_path / "r.jsonl", RIGHT, WRONG)
    encode = resolve_model(str(student)).tokenizer().encode
    assert len(encode(RIGHT)) > len(encode(WRONG))
    ok(
        *("data", "import-rollouts", file, "--format", "messages", "-m", student, "-p", tmp_path / "p.parquet"),
        *("--max-tokens", len(encode(RIGHT)), "--out", tmp_path / "y_o"),
    )
    ok("sample", "-m", student, "-p", tmp_path / "p.parquet", "--max-tokens", 4, *CPU, "--out", tmp_path / "sampled")
    right, wrong = sorted(rows_of(tmp_path / "y_o"), key=lambda row: row.sample_index)
    (sampled,) = rows_of(tmp_path / "sampled")
    same = ("problem_id", "messages", "prompt_token_ids", "prompt_template", "prompt_sha256", "stage", "round")
    assert {name: getattr(right, name) for name in same} == {name: getattr(sampled, name) for name in same}
    encode = resolve_model(str(student)).tokenizer().encode
    assert right.response_token_ids == encode(RIGHT)[: len(right.response_token_ids)], (
        "of --max-tokens or more: cut off"
    )
    assert (right.finish_reason, wrong.finish_reason) == ("length", "stop")
    assert wrong.response_token_ids == [*encode(WRONG), END]
    assert {row.ids_exact for row in (right, wrong)} == {False}
    assert right.engine == "import"


def test_what_nothing_tells_is_minus_one_and_counted_and_options_fill_it_in(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    file = lines(
        tmp_path / "r.jsonl",
        [{"problem": QUESTION, "response": RIGHT, "temperature": 0.3}, {"problem": QUESTION, "response": WRONG}],
    )
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model)
    said = ok(*command, "--out", tmp_path / "a").stderr
    assert "not told: temperature of 1 row, top_p of 2 rows, top_k of 2 rows, max_tokens of 2 rows" in said
    assert sorted(row.temperature for row in rows_of(tmp_path / "a")) == [UNKNOWN, 0.3]
    unknown = json.loads((tmp_path / "a" / "run.json").read_text())["unknown"]
    assert unknown == {"temperature": 1, "top_p": 2, "top_k": 2, "max_tokens": 2, "finish_reason": 2}
    told = ("--temperature", 1, "--top-p", 0.9, "--top-k", 0, "--model-name", "writer-7b", "--finish", "length")
    ok(*command, *told, "--out", tmp_path / "b")
    rows = rows_of(tmp_path / "b")
    assert sorted(row.temperature for row in rows) == [0.3, 1.0]
    assert {(row.top_p, row.top_k, row.model, row.finish_reason) for row in rows} == {(0.9, 0, "writer-7b", "length")}
    assert END not in {row.response_token_ids[-1] for row in rows}
    assert (
        "unknown: T top-p top-k most tokens seed" in ok("show", tmp_path / "a", "--id", _id_of(tmp_path / "a")).stdout
    )


def _id_of(directory: Path) -> str:
    return next(row.trajectory_id for row in rows_of(directory) if row.temperature == UNKNOWN)


def test_the_files_own_messages_are_the_prompt_where_they_are_asked_for(model: Path, tmp_path: Path, ok: Trd) -> None:
    turns = [{"role": "system", "content": "Be brief."}, user(ASKED)]
    file = lines(tmp_path / "r.jsonl", [{"prompt": turns, "completion": RIGHT}, {"problem": "x", "response": "y"}])
    said = ok(
        *("data", "import-rollouts", file, "--format", "messages", "-m", model, "--prompt-from", "file"),
        *("--out", tmp_path / "y_o"),
    ).stderr
    (row,) = rows_of(tmp_path / "y_o")
    assert row.messages == turns
    assert row.prompt_token_ids == resolve_model(str(model)).tokenizer().render(turns, "chat", {})
    assert "left out 1 row (r.jsonl, line 2): no prompt, which --prompt-from file takes" in said


def test_thoughts_that_a_server_split_off_come_back_in_their_tags(model: Path, tmp_path: Path, ok: Trd) -> None:
    chat = [user(QUESTION), assistant("\\boxed{5}", reasoning_content="2 and 3 make 5.")]
    file = lines(tmp_path / "r.jsonl", [{"messages": chat}])
    ok("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o")
    (row,) = rows_of(tmp_path / "y_o")
    assert row.response == "<think>\n2 and 3 make 5.\n</think>\n\n\\boxed{5}"


def test_a_response_that_opens_the_thoughts_again_is_kept_and_told(tmp_path: Path, ok: Trd) -> None:
    thinker = write_bare_model(tmp_path)
    write_tokenizer(thinker, chat_template=CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n"))
    file = simple(tmp_path / "r.jsonl", "<think>\nhm\n</think>\n\\boxed{5}")
    said = ok("data", "import-rollouts", file, "--format", "messages", "-m", thinker, "--out", tmp_path / "y_o").stderr
    assert "1 response with <think> after a prompt that ends in it" in said
    (row,) = rows_of(tmp_path / "y_o")
    assert row.response == "<think>\nhm\n</think>\n\\boxed{5}"


def test_a_response_that_is_cut_off_inside_thoughts_which_the_prompt_opened_has_no_answer(
    tmp_path: Path, ok: Trd
) -> None:
    thinker = write_bare_model(tmp_path)
    write_tokenizer(thinker, chat_template=CHAT_TEMPLATE.replace("assistant\n", "assistant\n<think>\n"))
    file = simple(tmp_path / "r.jsonl", "Is it \\boxed{5}? Let me", finish_reason="length")
    ok(
        *("data", "import-rollouts", file, "--format", "messages", "-m", thinker, "--model-name", "writer-7b"),
        *("--out", tmp_path / "y_o"),
    )
    ok("verify", tmp_path / "y_o", "--workers", 1)
    (row,) = rows_of(tmp_path / "y_o")
    assert (row.verdict, row.verdict_detail) == ("incorrect", "no_answer")


# Problems


def test_a_problem_set_gives_the_references_by_text_also_inside_of_instructions_or_by_id(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    known = [
        Problem("set-a", "set", "math", QUESTION, "5", "2 + 3 = 5"),
        Problem("set-b", "set", "math", "1 + 1?", "2"),
    ]
    write_problems(tmp_path / "p.parquet", known)
    wanted = ("-m", model, "-p", tmp_path / "p.parquet")
    chats = lines(
        tmp_path / "chats.jsonl",
        [
            {"messages": [user(ASKED), assistant(RIGHT)]},
            {"messages": [user("1  +  1?"), assistant("2")]},
            {"messages": [user("What is 7?"), assistant("7")]},
        ],
    )
    said = ok("data", "import-rollouts", chats, "--format", "messages", *wanted, "--out", tmp_path / "a").stderr
    assert {(row.problem_id, row.reference_answer) for row in rows_of(tmp_path / "a")} == {
        ("set-a", "5"),
        ("set-b", "2"),
    }
    assert "left out 1 row (chats.jsonl, line 3): its problem is not in --problems" in said
    body = {"choices": [{"text": RIGHT, "finish_reason": "stop"}]}
    batch = lines(tmp_path / "batch.jsonl", [{"custom_id": n, "response": {"body": body}} for n in ("set-a", "b")])
    ok("data", "import-rollouts", batch, "--format", "openai-batch", *wanted, "--out", tmp_path / "b")
    assert sorted(row.problem_id for row in rows_of(tmp_path / "b")) == ["set-a", "set-b"]


def test_a_number_that_is_a_place_in_another_list_joins_nothing(model: Path, tmp_path: Path, ok: Trd, trd: Trd) -> None:
    write_problems(
        tmp_path / "p.parquet",
        [Problem("s-0", "s", "math", "Another one?", "1"), Problem("s-1", "s", "math", QUESTION, "5")],
    )
    file = simple(tmp_path / "r.jsonl", RIGHT, id=0)
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model, "-p", tmp_path / "p.parquet")
    ok(*command, "--out", tmp_path / "a")
    assert [row.problem_id for row in rows_of(tmp_path / "a")] == ["s-1"]
    named = trd(*command, "--map", "problem_id=id", "--out", tmp_path / "b")
    assert named.exit_code == 1
    assert "the text of another problem in --problems than the one with its id '0'" in named.stderr
    other = lines(tmp_path / "o.jsonl", [{"problem": "In other words?", "response": RIGHT, "id": 0}])
    ok(*command[:2], other, *command[3:], "--map", "problem_id=id", "--out", tmp_path / "c")
    assert [row.problem_id for row in rows_of(tmp_path / "c")] == ["s-0"], "no text says otherwise"


def test_a_text_that_fits_several_problems_joins_none_but_the_one_that_its_id_names(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    known = [
        Problem("s-0", "s", "math", QUESTION, "5"),
        Problem("s-1", "s", "math", "1 + 1?", "2"),
        Problem("s-2", "s", "math", "Read this.\n1 + 1?\nExplain.", "two"),
        Problem("s-3", "s", "math", "Twice?", "3"),
        Problem("s-4", "s", "math", "Twice?", "4"),
    ]
    write_problems(tmp_path / "p.parquet", known)
    asked = [f"{QUESTION}\n5\n\n1 + 1?", "First:\nRead this.\n1 + 1?\nExplain.", "Twice?"]
    rows = [{"problem": text, "response": f"{n}", "of": n + 1} for n, text in enumerate(asked)]
    command = ("--format", "messages", "-m", model, "-p", tmp_path / "p.parquet")
    file = lines(tmp_path / "r.jsonl", rows)
    said = ok("data", "import-rollouts", file, *command, "--out", tmp_path / "a").stderr
    assert [row.problem_id for row in rows_of(tmp_path / "a")] == ["s-2"], "the longer one holds the shorter one"
    assert "r.jsonl, line 1; r.jsonl, line 3): its text fits several problems" in said
    file = lines(tmp_path / "n.jsonl", [rows[0], rows[2] | {"of": 4}])
    ok("data", "import-rollouts", file, *command, "--map", "problem_id=of", "--out", tmp_path / "b")
    assert sorted(row.problem_id for row in rows_of(tmp_path / "b")) == ["s-1", "s-4"]


def test_problems_without_references_are_told(model: Path, tmp_path: Path, ok: Trd) -> None:
    file = lines(tmp_path / "r.jsonl", [{"problem": QUESTION, "response": RIGHT}])
    said = ok("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o").stderr
    assert "1 problem with no single reference answer: trd verify cannot say right or wrong" in said
    assert "1 problem with no reference_solution: trd refine --setting opsd leaves an error row" in said


# Rows that repeat, and rows that cannot be taken


def test_equal_samples_are_samples_of_their_own_unless_distinct_ones_are_wanted(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    file = simple(tmp_path / "r.jsonl", RIGHT, RIGHT, WRONG)
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model)
    said = ok(*command, "--out", tmp_path / "all").stderr
    assert "1 response that repeat another one to the same problem: kept as samples of their own" in said
    assert len(by_id(tmp_path / "all")) == 3
    ok(*command, "--distinct", "--out", tmp_path / "distinct")
    assert {row.response for row in rows_of(tmp_path / "distinct")} == {RIGHT, WRONG}
    assert len(by_id(tmp_path / "distinct")) == 2


def test_the_rows_of_a_second_filter_are_copies(model: Path, tmp_path: Path, ok: Trd) -> None:
    (case,) = [case for case in CASES if case.form == "lm-eval"]
    file = lines(tmp_path / case.name, case.rows)
    said = ok("data", "import-rollouts", file, "--format", "lm-eval", "-m", model, "--out", tmp_path / "y_o").stderr
    assert "left out 2 that were there before under the same key" in said


def test_equal_responses_of_two_files_and_of_two_documents_are_no_copies(model: Path, tmp_path: Path, ok: Trd) -> None:
    (case,) = [case for case in CASES if case.form == "lm-eval"]
    first, second = (lines(tmp_path / case.name.replace("2026", year), case.rows) for year in ("2026", "2027"))
    command = ("data", "import-rollouts", first, second, "--format", "lm-eval", "-m", model)
    said = ok(*command, "--out", tmp_path / "a").stderr
    assert len(by_id(tmp_path / "a")) == 2 * case.count
    assert "left out 4 that were there before under the same key" in said
    row = {"target": "5", "doc": {"question": QUESTION}, "resps": [[RIGHT]]}
    file = lines(tmp_path / "samples.jsonl", [{**row, "doc_id": n} for n in (0, 0, 1)])
    ok("data", "import-rollouts", file, "--format", "lm-eval", "-m", model, "--out", tmp_path / "b")
    assert len(by_id(tmp_path / "b")) == 2
    answer = {"custom_id": "a", "response": {"body": {"choices": [{"text": RIGHT}]}}}
    batch = lines(tmp_path / "out.jsonl", [{**answer, "id": name} for name in ("one", "one", "two")])
    asked = lines(tmp_path / "in.jsonl", [{"custom_id": "a", "body": {"prompt": QUESTION}}])
    command = ("data", "import-rollouts", batch, "--format", "openai-batch", "--requests", asked, "-m", model)
    ok(*command, "--out", tmp_path / "c")
    assert len(by_id(tmp_path / "c")) == 2


def test_odd_values_in_a_row_stop_nothing_and_tell_nothing(model: Path, tmp_path: Path, ok: Trd) -> None:
    deep = "[" * 100_000 + "]" * 100_000
    odd = [
        {"max_tokens": float("inf"), "temperature": float("nan"), "top_k": 2**40, "top_p": 1.5},
        {"max_tokens": -1, "temperature": -2, "top_k": "5", "model": {"name": "w"}},
    ]
    file = lines(
        tmp_path / "r.jsonl", [deep, *({"problem": QUESTION, "response": RIGHT, "answer": "5"} | row for row in odd)]
    )
    said = ok(
        *("data", "import-rollouts", file, "--format", "messages", "-m", model, "--max-tokens", 9),
        *("--out", tmp_path / "a"),
    ).stderr
    assert "r.jsonl, line 1): not JSON" in said
    assert {(row.max_tokens, row.temperature, row.top_k, row.top_p) for row in rows_of(tmp_path / "a")} == {
        (9, UNKNOWN, UNKNOWN, UNKNOWN)
    }
    assert {row.model for row in rows_of(tmp_path / "a")} == {str(model)}
    doc = {"doc": {"question": QUESTION}, "target": "5"}
    given = [5, "5", [5], {"a": 5}, {}, None]
    file = lines(
        tmp_path / "s.jsonl", [{**doc, "arguments": each, "resps": [[f"{n}"]]} for n, each in enumerate(given)]
    )
    ok("data", "import-rollouts", file, "--format", "lm-eval", "-m", model, "--out", tmp_path / "b")
    assert sorted(row.response for row in rows_of(tmp_path / "b")) == ["0", "1", "4", "5"]


def test_requests_that_cannot_be_told_apart_or_read_are_refused(model: Path, tmp_path: Path, trd: Trd) -> None:
    answers = [{"custom_id": n, "response": {"body": {"choices": [{"text": n}]}}} for n in "ab"]
    requests = [{"custom_id": n, "body": {"prompt": f"{QUESTION} {at}"}} for at, n in enumerate("aab")]
    asked, file = lines(tmp_path / "in.jsonl", requests), lines(tmp_path / "out.jsonl", answers)
    command = ("data", "import-rollouts", file, "--format", "openai-batch", "-m", model, "--out", tmp_path / "y_o")
    result = trd(*command, "--requests", asked)
    assert "out.jsonl, line 1): several requests have the custom_id 'a'" in result.stderr
    assert [row.response for row in rows_of(tmp_path / "y_o")] == ["b"]
    packed = tmp_path / "in.jsonl.gz"
    packed.write_bytes(gzip.compress(asked.read_bytes()))
    result = trd(*command, "--requests", packed)
    assert result.exit_code == 1
    assert "has no request with a custom_id; expected the batch's input file, not compressed" in result.stderr


def test_the_reason_of_a_failed_request_is_one_line_without_keys(model: Path, tmp_path: Path, trd: Trd) -> None:
    key = "sk-" + "a1b2c3d4" * 4
    file = lines(tmp_path / "results.jsonl", [{"prompt": QUESTION, "completion": [], "error": f"refused\n{key}"}])
    trd("data", "import-rollouts", file, "--format", "verifiers", "-m", model, "--out", tmp_path / "y_o")
    assert [row.error for row in rows_of(tmp_path / "y_o")] == ["refused ***"]


def test_a_row_that_cannot_be_taken_is_left_out_by_number_and_never_stops_the_others(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    chat = [user("One?"), assistant("1"), user("Two?"), assistant("2")]
    rows = [
        {"problem": QUESTION, "response": RIGHT},
        '{"problem": "cut o',
        {"problem": QUESTION},
        "[]",
        {"messages": chat},
        {"problem": QUESTION, "response": {"a": 1}},
        {"messages": [{"role": "tool", "content": "x"}, assistant("1")]},
        {"problem": {"a": 1}, "response": "1"},
        {"problem": "Ann?", "id": 3, "response": "1"},
        {"problem": "Bob?", "id": 3, "response": "2"},
        {"problem": "Last?", "response": "\ud800 text"},
    ]
    file = lines(tmp_path / "r.jsonl", rows)
    said = ok("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o").stderr
    assert {row.response for row in rows_of(tmp_path / "y_o")} == {RIGHT, "1", "\ufffd text"}
    for line, reason in {
        2: "not JSON",
        3: "no response",
        4: "a list, not an object",
        5: "2 turns of the user",
        6: "the response is a dict",
        7: "a message has the role 'tool'",
        8: "the prompt is a dict, not messages",
        10: "'r-3' is the id of another problem too",
    }.items():
        assert any(f"r.jsonl, line {line}" in told and reason in told for told in said.splitlines()), (line, said)
    assert ok("status", tmp_path / "y_o").stdout.split("\t")[2] == "complete"


def test_a_request_that_failed_is_an_error_row_and_counts_for_max_errors(model: Path, tmp_path: Path, trd: Trd) -> None:
    requests = [{"custom_id": n, "body": {"messages": [user(f"{QUESTION} {n}")]}} for n in "ab"]
    answers = [
        {"custom_id": "a", "response": {"status_code": 429, "body": {"error": {"message": "too many requests"}}}},
        {"custom_id": "b", "response": None, "error": {"code": "batch_expired", "message": "it took too long"}},
        {"custom_id": "c", "response": None, "error": None},
    ]
    file, asked = lines(tmp_path / "out.jsonl", answers), lines(tmp_path / "in.jsonl", requests)
    result = trd(
        *("data", "import-rollouts", file, "--format", "openai-batch", "--requests", asked, "-m", model),
        *("--out", tmp_path / "y_o"),
    )
    assert result.exit_code == 3
    assert "2 of 2 rows ended as errors" in result.stderr
    assert "line 3): no request has the custom_id 'c'" in result.stderr
    assert sorted(row.error for row in rows_of(tmp_path / "y_o")) == ["it took too long", "too many requests"]
    assert {row.response for row in rows_of(tmp_path / "y_o")} == {None}


def test_files_without_any_response_are_refused_and_leave_nothing(model: Path, tmp_path: Path, trd: Trd) -> None:
    file = lines(tmp_path / "r.jsonl", [{"question": QUESTION, "text": RIGHT}])
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o")
    result = trd(*command)
    assert result.exit_code == 1
    assert "gives no response (r.jsonl, line 1: no response); expected at least one; check --format" in result.stderr
    assert not (tmp_path / "y_o").exists()
    assert trd(*command, "--map", "response=text").exit_code == 0


# Again


def test_the_same_command_again_does_nothing_and_another_directory_gets_the_same_ids(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    file = simple(tmp_path / "r.jsonl", *(f"{n}: \\boxed{{{n}}}" for n in range(7)))
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model, "--shard-rows", 3)
    first = ok(*command, "--out", tmp_path / "a").stdout
    assert len(first.splitlines()) == 3
    before = {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.parquet")}
    assert ok(*command, "--out", tmp_path / "a").stdout == first
    assert {path.name: path.read_bytes() for path in (tmp_path / "a").glob("*.parquet")} == before
    (tmp_path / "a" / "shard-00001.parquet").unlink()
    ok(*command, "--out", tmp_path / "a")
    ok(*command, "--out", tmp_path / "b")
    assert by_id(tmp_path / "a") == by_id(tmp_path / "b")
    assert len(by_id(tmp_path / "b")) == 7


def test_another_configuration_or_a_changed_file_is_refused(model: Path, tmp_path: Path, ok: Trd, trd: Trd) -> None:
    file = simple(tmp_path / "r.jsonl", RIGHT)
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o")
    ok(*command)
    refused = trd(*command, "--temperature", 1)
    assert refused.exit_code == 1
    assert "another configuration: temperature (null → 1.0)" in refused.stderr
    simple(tmp_path / "r.jsonl", RIGHT, WRONG)
    assert "another configuration: files" in trd(*command).stderr


def test_more_responses_may_be_taken_later(model: Path, tmp_path: Path, ok: Trd) -> None:
    file = simple(tmp_path / "r.jsonl", "1", "2", "3")
    command = ("data", "import-rollouts", file, "--format", "messages", "-m", model, "--out", tmp_path / "y_o")
    ok(*command, "--limit", 1)
    ok(*command)
    assert sorted(row.response for row in rows_of(tmp_path / "y_o")) == ["1", "2", "3"]


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (("--requests", "x.jsonl"), "--requests with --format messages"),
        (("--prompt-from", "file", "--prompt", "p.jinja"), "--prompt with --prompt-from file"),
        (("--map", "colour=a"), "--map colour=a"),
        (("--problems", "no-such-benchmark"), "no-such-benchmark"),
    ],
)
def test_options_that_do_not_fit_are_refused(
    options: tuple[str, ...], told: str, model: Path, tmp_path: Path, trd: Trd
) -> None:
    file = simple(tmp_path / "r.jsonl", RIGHT)
    result = trd(
        *("data", "import-rollouts", file, "--format", "messages", "-m", model, *options, "--out", tmp_path / "y_o")
    )
    assert result.exit_code == 1
    assert told in result.stderr


def test_a_dry_run_shows_the_first_prompt_and_response_and_writes_nothing(model: Path, tmp_path: Path, ok: Trd) -> None:
    file = simple(tmp_path / "r.jsonl", RIGHT)
    said = ok(
        *("data", "import-rollouts", file, "--format", "messages", "-m", model, "--dry-run", "--out", tmp_path / "y_o")
    ).stderr
    assert QUESTION in said
    assert RIGHT.strip() in said
    assert not (tmp_path / "y_o").exists()


# The whole way


def test_an_imported_set_is_verified_refined_distilled_diagnosed_and_shown(
    pair: tuple[Path, Path], problems: Path, tmp_path: Path, ok: Trd
) -> None:
    student, teacher = pair
    asked = _problems_of(problems)
    rows = [
        {"example_id": n, "prompt": [user(p.problem)], "completion": [assistant(text)], "is_truncated": False}
        for n, p in enumerate(asked)
        for text in (f"It is \\boxed{{{p.reference_answer}}}", "It is \\boxed{-1}")
    ]
    lines(tmp_path / "results.jsonl", rows)
    y_o, y_r = tmp_path / "y_o", tmp_path / "y_r"
    ok(
        *("data", "import-rollouts", tmp_path / "results.jsonl", "--format", "verifiers", "-m", student),
        *("-p", problems, "--model-name", "writer-7b", "--out", y_o),
    )
    assert ok("status", y_o).stdout.split("\t")[2] == "complete"
    ok("verify", y_o, "--workers", 1)
    assert sorted(row.verdict for row in rows_of(y_o)) == ["correct"] * len(asked) + ["incorrect"] * len(asked)
    ok("refine", y_o, "--setting", "opd", "--teacher", teacher, "--max-tokens", 8, *CPU, "--out", y_r)
    assert {row.parent_id for row in rows_of(y_r)} == by_id(y_o).keys()
    assert all(row.student_prompt_token_ids == by_id(y_o)[row.parent_id].prompt_token_ids for row in rows_of(y_r))
    for name, sets in {"along_y_r": (y_r,), "along_y_o": (y_o, "--method", "fkl", "--teacher", teacher)}.items():
        ok("distill", *sets, *CPU, "--steps", 1, "--batch-size", 4, "--out", tmp_path / name)
        assert len((tmp_path / name / "train.jsonl").read_text().splitlines()) == 1
    ok("diagnose", y_o, y_r, "--teacher", teacher, *CPU, "--out", tmp_path / "diagnosis")
    shown = ok("show", y_o, "--id", rows_of(y_o)[0].trajectory_id).stdout
    assert "writer-7b @ unknown on import" in shown


def test_a_set_for_the_scripted_model_is_refined_by_it_with_the_reference(
    problems: Path, tmp_path: Path, ok: Trd
) -> None:
    rows = [{"problem": p.problem, "response": "It is \\boxed{-1}"} for p in _problems_of(problems)]
    file = lines(tmp_path / "r.jsonl", rows)
    y_o, y_r = tmp_path / "y_o", tmp_path / "y_r"
    ok("data", "import-rollouts", file, "--format", "messages", "-m", "scripted", "-p", problems, "--out", y_o)
    ok("refine", y_o, "--setting", "opsd", "--out", y_r)
    ok("verify", y_o, y_r, "--workers", 1)
    assert {row.verdict for row in rows_of(y_o)} == {"incorrect"}
    assert {row.parent_id for row in rows_of(y_r)} == by_id(y_o).keys()
    assert "correct" in {row.verdict for row in rows_of(y_r)}
    assert ok("show", y_r).stdout


@pytest.mark.parametrize("layout", ["messages", "prompt-completion", "sharegpt"])
def test_what_trd_exports_it_imports_again(layout: str, rollouts: Path, tmp_path: Path, ok: Trd) -> None:
    file = tmp_path / "rows.jsonl"
    ok("export", rollouts, "--format", layout, "--out", file)
    ok("data", "import-rollouts", file, "--format", "messages", "-m", "scripted", "--out", tmp_path / "again")
    same = (
        "problem_id",
        "problem",
        "reference_answer",
        "messages",
        "prompt_token_ids",
        "response_token_ids",
        "response",
    )
    before, after = (
        sorted([getattr(row, name) for name in same] for row in rows_of(each))
        for each in (rollouts, tmp_path / "again")
    )
    assert after == before


def _problems_of(path: Path) -> list[Problem]:
    from trd_cli.trajectories.problem_sets import read_problems

    return read_problems(path)


# Graded rollouts made elsewhere


@needs_data
def test_verdicts_of_recorded_rollouts_of_mathematics_are_the_recorded_ones(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    file = DATA / "rollouts" / "math_cot_100.jsonl"
    ok(
        *("data", "import-rollouts", file, "--format", "messages", "--map", "problem=question,response=code,answer=gt"),
        *("-m", model, "--out", tmp_path / "y_o"),
    )
    ok("verify", tmp_path / "y_o", "--workers", 1)
    records = [json.loads(line) for line in file.read_text().splitlines()]
    recorded = {(r["question"], text): bool(s) for r in records for text, s in zip(r["code"], r["score"], strict=True)}
    found = rows_of(tmp_path / "y_o")
    assert len(found) == 800
    differing = [row for row in found if (row.verdict == "correct") != recorded[row.problem, row.response]]
    # The one that is recorded as wrong is right.
    assert [(row.extracted_answer, row.reference_answer) for row in differing] == [("10000", "10{,}000")]


@needs_data
def test_verdicts_of_recorded_programs_are_the_recorded_ones(model: Path, tmp_path: Path, ok: Trd) -> None:
    folder = DATA / "rollouts" / "evalplus_llama3_8b"
    ok(
        *("data", "import-rollouts", folder / "samples.jsonl", "--format", "evalplus", "-m", model),
        *("-p", "humaneval+:version=v0.1.9", "--limit", 12, "--out", tmp_path / "y_o"),
    )
    ok("verify", tmp_path / "y_o", "--workers", 1)
    records = json.loads((folder / "samples_eval_results.json").read_text())["eval"]
    found: list[Trajectory] = rows_of(tmp_path / "y_o")
    assert len(found) == 12
    passed = {"base_status": "pass", "plus_status": "pass"}
    for row in found:
        (record,) = records[row.problem_id]
        assert (row.verdict == "correct") == (passed.items() <= record.items()), row.problem_id


@needs_data
def test_a_completion_of_evalplus_follows_its_prompt_and_no_set_has_to_be_named(
    model: Path, tmp_path: Path, ok: Trd
) -> None:
    body = "    return [word for word in strings if substring in word]\n"
    file = lines(tmp_path / "samples.jsonl", [{"task_id": "HumanEval/7", "completion": body}])
    ok("data", "import-rollouts", file, "--format", "evalplus", "-m", model, "--out", tmp_path / "y_o")
    ok("verify", tmp_path / "y_o", "--workers", 1)
    (row,) = rows_of(tmp_path / "y_o")
    assert (row.problem_id, row.verdict) == ("HumanEval/7", "correct")
    assert row.response.endswith(f"{body}\n```")
