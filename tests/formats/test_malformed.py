"""Rows that break the rules of their format are set aside, each with its line and the reason; the others are read."""

import json
import random
from collections import Counter

import foreign
import pytest

from stepmark.data import exchange
from stepmark.data.encode import write_rows
from stepmark.errors import DataError
from stepmark.plugins import registry
from stepmark.stages.convert import encoded
from stepmark.types import Finish, Imported, Quarantined


def shepherd(**fields):
    text = "How many? Step 1: 2 + 2 = 4. ки\nStep 2: The answer is: 4 ки"
    return {"input": text, "label": text.replace(" ки", " +"), "task": "GSM8K"} | fields


def prm(*steps, **question):
    listed = steps or ({"completions": [{"text": "So 4.", "rating": 1, "flagged": False}], "chosen_completion": 0},)
    problem = {"problem": "2 + 2?", "ground_truth_answer": "4"} | question
    return {"question": problem, "label": {"steps": list(listed), "finish_reason": "solution"}}


def turns(*pairs):
    roles = ("user", "assistant")
    return {"conversations": [{"role": r, "content": x} for pair in pairs for r, x in zip(roles, pair, strict=True)]}


STEPWISE = {"prompt": "2 + 2?", "completions": ["Add.", "So 4."], "labels": [True, False]}
BENCH = {"id": "x-0", "generator": "m", "problem": "2?", "steps": ["a", "b"], "final_answer_correct": False, "label": 1}
LM_EVAL = {"doc_id": 0, "doc": {"question": "2 + 2?"}, "target": "so\n#### 4", "resps": [["It is 4.", "It is 5."]]}
INSPECT = {
    "id": 1,
    "epoch": 1,
    "input": "2 + 2?",
    "target": "4",
    "output": {"choices": [{"message": {"role": "assistant", "content": "It is 4."}, "stop_reason": "stop"}]},
    "scores": {"match": {"value": "C", "answer": "4"}},
}
GOOD = {
    "math_shepherd": shepherd(),
    "stepwise": STEPWISE,
    "openrlhf": {"input": shepherd()["input"], "value": ["+", 0.5]},
    "rlhflow": turns(("2 + 2? Step 1: Add.", "+"), ("Step 2: So 4.", "-")),
    "prm800k": prm(),
    "processbench": BENCH,
    "openr": {"question": "2 + 2?", "process": "Add.\n\n\n\n\nSo 4.\n\n\n\n\n", "label": ["+", "-"]},
    "genrm_release": {"question": "2?", "solutions": [{"sample_id": 0, "solution": "It is 2.", "correct": True}]},
    "gsm8k": {"question": "2 + 2?", "answer": "It is <<2+2=4>>4.\n#### 4"},
    "math": {"problem": "$2+2$?", "solution": "It is $\\boxed{4}$.", "level": "Level 1", "type": "Algebra"},
    "completions": {
        "prompt": "2 + 2?",
        "outputs": [{"text": "It is", "finish_reason": "length"}, {"text": "It is 4."}],
    },
    "trl_preference": {"prompt": "2 + 2?", "chosen": "It is 4.", "rejected": "It is 5."},
    "trl_prompt_completion": {"prompt": "2 + 2?", "completion": "It is 4."},
    "lm_eval": LM_EVAL,
}

BAD = [
    ("math_shepherd", shepherd(label="How many? Step 1: 2 + 2 = 4. +\nStep 2: The answer is: 4"), "before tag 2 of 2"),
    ("math_shepherd", shepherd(label=shepherd()["label"] + "\nStep 3: more +"), "after tag 2, the last one"),
    ("math_shepherd", shepherd(label=shepherd()["label"].replace(" +\n", " ?\n")), "'?' at tag 1 of 2 (character 29"),
    ("math_shepherd", shepherd(label=shepherd()["label"].replace("= 4", "= 5")), "differ before tag 1 of 2"),
    ("math_shepherd", shepherd(input="How many? It is 4. ки", label="How many? It is 4. +"), "no 'Step 1:'"),
    ("math_shepherd", shepherd(input="Step 1: 4 ки", label="Step 1: 4 +"), "no question before"),
    ("math_shepherd", shepherd(input="How many? Step 1: 4", label="How many? Step 1: 4"), "no tag 'ки'"),
    ("math_shepherd", shepherd(input="Q? Step 1: 4 ки ки", label="Q? Step 1: 4 + +"), "no step before tag 2"),
    ("math_shepherd", shepherd(input="Q? Step 1: a ки\nb", label="Q? Step 1: a +\nb"), "text after the last tag"),
    ("math_shepherd", shepherd(input="Q Step 1: is? Step 1: a ки", label="Q Step 1: is? Step 1: a +"), "stands twice"),
    ("math_shepherd", shepherd(label=None), "field 'label': missing"),
    ("math_shepherd", shepherd(label=["+"]), "wrong type: a list"),
    ("stepwise", STEPWISE | {"labels": [True]}, "1 labels for 2 steps"),
    ("stepwise", STEPWISE | {"labels": [True, 1.5]}, "label 2 of 2 is 1.5"),
    ("stepwise", STEPWISE | {"labels": [True, float("nan")]}, "label 2 of 2 is nan"),
    ("stepwise", STEPWISE | {"labels": [-100, True]}, "label 1 of 2 is -100"),
    ("stepwise", STEPWISE | {"labels": "good"}, "field 'labels': a list is needed"),
    ("stepwise", STEPWISE | {"completions": ["Add.", " \n"]}, "step 2 of 2 is blank"),
    ("stepwise", STEPWISE | {"completions": [], "labels": []}, "it has no step"),
    ("stepwise", STEPWISE | {"completions": ["Add.", 4]}, "step 2 of 2 is no text but 4"),
    ("stepwise", STEPWISE | {"completions": ["a\0", "b"]}, "step 1 of 2 has NUL characters"),
    ("stepwise", STEPWISE | {"prompt": ""}, "field 'prompt': empty"),
    ("openrlhf", GOOD["openrlhf"] | {"value": ["+"]}, "1 labels for 2 steps"),
    ("openrlhf", GOOD["openrlhf"] | {"text": "x"}, "one of the fields 'input' and 'text'"),
    ("openrlhf", GOOD["openrlhf"] | {"value": ["+", "ok"]}, "label 2 of 2 is 'ok'"),
    ("rlhflow", turns(("2 + 2? Add.", "+")), "no 'Step 1:'"),
    ("rlhflow", turns(("Step 1: Add.", "+")), "no question"),
    ("rlhflow", turns(("2? Step 1: Add.", "good")), "label 1 of 1 is 'good'"),
    ("rlhflow", {"conversations": GOOD["rlhflow"]["conversations"][:3]}, "an even number of turns"),
    ("rlhflow", {"conversations": GOOD["rlhflow"]["conversations"][::-1]}, "turn 1 of 4: a text of the user"),
    ("rlhflow", {"prompt": "2?", "answers": ["2", "3"], "label": [1]}, "lists of the same length"),
    ("rlhflow", {"prompt": "2?", "answers": ["2"], "label": ["maybe"]}, "'maybe' says neither right nor wrong"),
    ("prm800k", prm({"completions": [{"text": "a", "rating": 2}], "chosen_completion": 0}), "rating is 2"),
    ("prm800k", prm({"completions": [{"text": "a", "rating": True}]}), "rating is True"),
    ("prm800k", prm({"completions": [{"text": "", "rating": 1}]}), "step 1 of 1 is blank"),
    ("prm800k", prm({"completions": [{"text": "a", "rating": 1}], "chosen_completion": 1}), "there are 1 completions"),
    ("prm800k", prm({"completions": [], "chosen_completion": None}), "no step has a chosen completion"),
    ("prm800k", prm({"completions": [], "human_completion": None}, {"completions": []}), "and yet steps follow"),
    ("prm800k", {"question": "2?", "label": {}}, "both objects"),
    ("prm800k", prm(problem=" "), "field 'question.problem'"),
    ("processbench", BENCH | {"label": 2}, "a number from -1 to 1 is needed, got 2"),
    ("processbench", BENCH | {"label": True}, "got True"),
    ("processbench", BENCH | {"steps": "a"}, "field 'steps': a list"),
    ("processbench", BENCH | {"final_answer_correct": "perhaps"}, "neither right nor wrong"),
    ("openr", GOOD["openr"] | {"label": ["+"]}, "1 labels for 2 steps"),
    ("openr", GOOD["openr"] | {"process": "Add.\n\n\n\n\nSo 4."}, "text after the last tag: 'So 4.'"),
    ("openr", {"text": "2?", "children": [{"text": "a", "mc_value": 3, "children": []}]}, "mc_value at depth 1 is 3"),
    ("openr", {"text": "2?", "children": ["a"]}, "a node at depth 1 is no object"),
    ("openr", {"text": "2?", "children": []}, "a tree without a step"),
    ("gsm8k", {"question": "2?", "answer": "It is 2."}, "end in a line '#### N'"),
    ("gsm8k", {"question": "2?", "answer": "\n#### 2"}, "end in a line '#### N'"),
    ("math", {"problem": "2?", "solution": "It is 2.", "level": 1}, "no \\boxed{}"),
    ("completions", {"prompt": "2?"}, "needs one field of"),
    ("completions", {"prompt": "2?", "question": "3?", "completions": ["4"]}, "needs one field of"),
    ("completions", {"prompt": "2?", "completions": []}, "0 solutions"),
    ("completions", {"prompt": "2?", "completions": ["2", "3"], "correct": [True]}, "2 solutions and 1 flags"),
    ("completions", {"prompt": "2?", "completions": ["2"], "correct": ["so so"]}, "neither right nor wrong"),
    ("completions", {"prompt": "2?", "completions": [{"image": "x"}]}, "item 1 of 1: a text is needed"),
    ("trl_preference", {"prompt": "2?", "chosen": "2"}, "must be texts"),
    (
        "trl_preference",
        {"prompt": [{"role": "user", "content": "2?"}] * 2, "chosen": "2", "rejected": "3"},
        "one message",
    ),
    ("trl_prompt_completion", {"prompt": "2?", "completion": "2", "label": "x"}, "neither right nor wrong"),
    ("lm_eval", LM_EVAL | {"resps": [["a"], ["b"]]}, "2 requests for one question"),
    ("lm_eval", LM_EVAL | {"doc": {"text": "2?"}}, "'doc' has no field question"),
    ("lm_eval", LM_EVAL | {"filter": "other"}, "it is of the filter 'other'"),
]


def write(path, rows, end="\n"):
    path.write_bytes(
        "".join((r if isinstance(r, str) else json.dumps(r, ensure_ascii=False)) + end for r in rows).encode()
    )
    return path


@pytest.mark.parametrize(("name", "row", "said"), BAD, ids=[f"{name}-{i}" for i, (name, *_) in enumerate(BAD)])
def test_a_row_that_breaks_a_rule_is_set_aside_with_its_place(tmp_path, name, row, said):
    for end in ("\n", "\r\n"):
        path = write(tmp_path / "rows.jsonl", [GOOD[name], row, GOOD[name] | {"question_id": 7}, "{broken"], end)
        found = list(registry.load("format", name).read(path))
        assert [type(x) for x in found] == [Imported, Quarantined, Imported, Quarantined]
        assert (found[1].file, found[1].line, found[3].line) == (str(path), 2, 4)
        assert said in found[1].reason


def places(value, at=()):
    """Every place in a value of JSON."""
    yield at
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(inner, (*at, key))


VALUES = (None, True, 0, -1, 7, 0.5, 1e300, "", " ", "ки", "+", "a\0", [], {}, [[]], [None], [{}])


def changed(rng, row):
    """The row with another value somewhere, or without one."""
    row = json.loads(json.dumps(row))
    if not row:
        return row
    *above, key = rng.choice([at for at in places(row) if at])
    holder = row
    for step in above:
        holder = holder[step]
    if rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = rng.choice(
            (None, True, 0, -1, 7, 0.5, 1e300, "", " ", "ки", "+", "a\0", [], {}, [[]], [None], [{}])
        )
    return row


@pytest.mark.parametrize("name", [*GOOD, "inspect_log", "stepmark", "openai_batch"])
def test_no_row_whatever_is_in_it_stops_the_others(tmp_path, name):
    rng = random.Random(name)
    records = [next(iter(encoded(foreign.records(20), registry.load("format", "stepmark"), Counter())))]
    batch = {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "2?"}]}}
    result = {
        "custom_id": "a",
        "response": {"body": {"choices": [{"message": {"content": "2"}, "finish_reason": "stop"}]}},
    }
    good = {"inspect_log": INSPECT, "stepmark": records[0], "openai_batch": result, **GOOD}[name]
    rows = [changed(rng, changed(rng, good) if rng.random() < 0.3 else good) for _ in range(600)]
    path, options = tmp_path / "rows.jsonl", {}
    if name == "inspect_log":
        log(path, rows)
    else:
        write(path, rows)
    if name == "openai_batch":
        options = {
            "requests": str(write(tmp_path / "batch.jsonl", [batch, *(changed(rng, batch) for _ in range(100))]))
        }
    found = list(registry.load("format", name, **options).read(path))
    of_rows = [x for x in found if isinstance(x, Imported) or x.file == str(path)]
    assert len(of_rows) == len(rows)
    assert all(x.reason for x in of_rows if isinstance(x, Quarantined))
    # What was read can be written again, whatever it is.
    usable = [x for x in found if isinstance(x, Imported)]
    assert len(usable) < len(rows)
    for writer in registry.names("format"):
        if hasattr(registry.find("format", writer), "encode"):
            write_rows(tmp_path / "again.jsonl", encoded(usable, registry.load("format", writer), Counter()))


def read(tmp_path, name, *rows, **options):
    found = list(registry.load("format", name, **options).read(write(tmp_path / "rows.jsonl", rows)))
    assert all(isinstance(x, Imported) for x in found), found
    return found


def labels(found):
    return [[label.soft if label.known else None for label in x.labels] for x in found.labels]


def test_math_shepherd_finds_the_boundary_the_steps_and_the_signs(tmp_path):
    question = "Сколько яблоки ки стоят?"
    text = f"{question} Step 1: a ки b = 4 ки\nStep 2: The answer is: 4 ки"
    # The tag in the question is a word, and so is one in a step only where something else follows it.
    [found] = read(
        tmp_path,
        "math_shepherd",
        shepherd(input=text, label=f"{question} Step 1: a + b = 4 -\nStep 2: The answer is: 4 +"),
    )
    assert found.problem.question == question
    assert found.solutions[0].steps == ("Step 1: a", "b = 4", "Step 2: The answer is: 4")
    assert labels(found) == [[1.0, 0.0, 1.0]]
    assert found.extra == {"task": "GSM8K", "unusual white space": True}


def test_prm800k_follows_what_was_chosen(tmp_path):
    def step(*ratings, chosen=None, human=None):
        listed = [{"text": f"s{i}", "rating": r, "flagged": False} for i, r in enumerate(ratings)]
        return {"completions": listed, "human_completion": human, "chosen_completion": chosen}

    row = prm(
        step(-1, 1, chosen=1), step(0, chosen=0), step(-1, human="mine"), step(-1, -1, human={"text": "too"}), step(-1)
    )
    [found] = read(tmp_path, "prm800k", row)
    assert found.problem.answer == "4"
    assert found.solutions[0].steps == ("s1", "s0", "mine", "too", "s0")
    assert labels(found) == [[1.0, 1.0, None, None, 0.0]]
    assert found.extra["alternative completions"] == 4
    assert "ratings of 0 (read as right)" in found.extra
    for neutral, value in (("wrong", 0.0), ("none", None)):
        [found] = read(tmp_path, "prm800k", row, neutral=neutral)
        assert labels(found)[0][1] == value
    [found] = read(tmp_path, "prm800k", row, alternatives=True)
    assert [s.steps for s in found.solutions] == [
        ("s1", "s0", "mine", "too", "s0"),
        ("s0",),
        ("s1", "s0", "s0"),
        ("s1", "s0", "mine", "s0"),
        ("s1", "s0", "mine", "s1"),
    ]
    assert labels(found)[1:] == [[0.0], [None, None, 0.0], [None] * 3 + [0.0], [None] * 3 + [0.0]]
    assert len({s.id for s in found.solutions}) == 5


def test_processbench_labels_nothing_after_the_first_wrong_step(tmp_path):
    row = BENCH | {"steps": ["a", "b", "c"], "label": 1}
    assert labels(read(tmp_path, "processbench", row)[0]) == [[1.0, 0.0, None]]
    assert labels(read(tmp_path, "processbench", row, after="wrong")[0]) == [[1.0, 0.0, 0.0]]
    assert labels(read(tmp_path, "processbench", row | {"label": -1})[0]) == [[1.0, 1.0, 1.0]]


def test_one_turn_is_a_step_or_a_whole_solution(tmp_path):
    row = turns(("2 + 2? Step 1: Add.\nStep 2: So 4.", "+"))
    [found] = read(tmp_path, "rlhflow", row)
    assert (len(found.solutions[0].steps), labels(found), found.grades) == (1, [[1.0]], ())
    [found] = read(tmp_path, "rlhflow", row, orm=True)
    assert (len(found.solutions[0].steps), found.labels, found.grades[0].grade.correct) == (2, (), True)
    [a, b] = read(tmp_path, "rlhflow", *[{"prompt": "2?", "answers": ["2", "3"], "label": [1, 0]}] * 2)
    assert [s.id for x in (a, b) for s in x.solutions] == [f"{a.problem.id}#{i}" for i in range(4)]


def test_a_tree_is_its_paths(tmp_path):
    leaf = {"mc_value": 0.25, "children": []}
    tree = {
        "text": "2?",
        "mc_value": 0.5,
        "children": [{"text": "a", "mc_value": 0.75, "children": [leaf | {"text": "b"}, leaf | {"text": "c"}]}],
    }
    [found] = read(tmp_path, "openr", tree)
    assert [s.steps for s in found.solutions] == [("a", "b"), ("a", "c")]
    assert labels(found) == [[0.75, 0.25], [None, 0.25]]
    assert found.extra == {"mc_value of the root": 0.5}


def test_a_share_is_exactly_that_share_and_says_that_it_has_no_counts(tmp_path):
    values = [0.9, 0.1 + 0.2, 5e-324, 1.0, 0.0, 1 / 3]
    [found] = read(tmp_path, "stepwise", {"prompt": "q", "completions": list("abcdef"), "labels": values})
    assert labels(found) == [values]
    assert {label.source for label in found.labels[0].labels} == {"imported:share"}


def test_vllm_outputs_say_what_was_truncated(tmp_path):
    [found] = read(tmp_path, "completions", GOOD["completions"])
    assert [s.finish for s in found.solutions] == [Finish.LENGTH, Finish.STOP]
    [found] = read(tmp_path, "completions", {"prompt": "2?", "completions": ["", "2"]})
    assert [s.steps for s in found.solutions] == [(), ("2",)]  # a model may write nothing
    [a, b] = read(tmp_path, "completions", {"question": "2?", "completion": "2"}, {"question": "2?", "completion": "3"})
    assert [s.id for x in (a, b) for s in x.solutions] == [f"{a.problem.id}#0", f"{a.problem.id}#1"]


def test_lm_eval_samples(tmp_path):
    [found] = read(tmp_path, "lm_eval", LM_EVAL)
    assert (found.problem.question, found.problem.answer) == ("2 + 2?", "4")
    assert ([s.text for s in found.solutions], found.grades) == (["It is 4.", "It is 5."], ())
    one = LM_EVAL | {"resps": [["It is 4."]], "exact_match": 1.0}
    assert read(tmp_path, "lm_eval", one, metric="exact_match")[0].grades[0].grade.correct
    assert read(tmp_path, "lm_eval", one)[0].extra == {"exact_match": 1.0}


def test_messages_may_stand_for_texts(tmp_path):
    user, good, bad = ({"role": r, "content": x} for r, x in (("user", "2?"), ("assistant", "2"), ("assistant", "3")))
    system = {"role": "system", "content": "Be brief."}
    rows = [
        {"prompt": [user], "chosen": [good], "rejected": [bad]},
        {"chosen": [user, good], "rejected": [user, bad]},
        {"prompt": [system, user], "chosen": [good], "rejected": [bad]},
    ]
    found = read(tmp_path, "trl_preference", *rows)
    assert [(x.problem.question, *(s.text for s in x.solutions)) for x in found] == [("2?", "2", "3")] * 3
    assert [x.extra for x in found] == [{}, {}, {"system message": True}]


def log(path, samples):
    path.write_text(
        json.dumps({"version": 2, "status": "success", "eval": {"task": "x"}, "samples": samples}, indent=1)
    )
    return path


def test_inspect_logs_are_read_from_both_kinds_of_file(tmp_path):
    import zipfile

    second = json.loads(json.dumps(INSPECT)) | {"epoch": 2, "scores": {"match": {"value": "I"}}}
    second["output"]["choices"][0]["stop_reason"] = "max_tokens"
    failed = INSPECT | {"id": 2, "output": {"choices": []}, "error": {"message": "time"}}
    samples = [INSPECT, second, failed]
    archive = tmp_path / "log.eval"
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("header.json", json.dumps({"eval": {}}))
        for s in samples:
            file.writestr(f"samples/{s['id']}_epoch_{s['epoch']}.json", json.dumps(s))
        file.writestr("samples/9_epoch_1.json", "{broken")
    for path in (log(tmp_path / "log.json", samples), archive):
        first, other, bad, *broken = registry.load("format", "inspect_log").read(path)
        assert [s.id for x in (first, other) for s in x.solutions] == ["1#0", "1#1"]
        assert (first.problem.answer, first.grades[0].grade.correct, other.grades[0].grade.correct) == (
            "4",
            True,
            False,
        )
        assert other.solutions[0].finish is Finish.LENGTH
        assert "wrote nothing" in bad.reason
        assert all("samples/9_epoch_1.json" in x.reason for x in broken)
    two = INSPECT | {"scores": {"match": {"value": "C"}, "other": {"value": 0}}}
    path = log(tmp_path / "two.json", [two])
    assert [x.grades for x in registry.load("format", "inspect_log").read(path)] == [()]
    [found] = registry.load("format", "inspect_log", scorer="other").read(path)
    assert not found.grades[0].grade.correct
    with pytest.raises(DataError, match="no list 'samples'"):
        list(registry.load("format", "inspect_log").read(write(tmp_path / "other.json", [{"a": 1}])))


def test_results_of_a_batch_find_their_questions(tmp_path):
    requests = write(
        tmp_path / "batch.jsonl",
        [
            {"custom_id": "a", "body": {"messages": [{"role": "user", "content": "2 + 2?"}]}},
            {"custom_id": "b", "body": {}},
        ],
    )
    choices = [{"message": {"content": "It is 4."}, "finish_reason": "stop"}]
    results = write(
        tmp_path / "results.jsonl",
        [{"custom_id": id, "response": {"status_code": 200, "body": {"choices": choices}}} for id in "ab"]
        + [{"custom_id": "c", "response": None, "error": {"message": "expired"}}],
    )
    found = list(registry.load("format", "openai_batch", requests=str(requests)).read(results))
    assert [(x.problem.id, x.problem.question) for x in found if isinstance(x, Imported)] == [("a", "2 + 2?")]
    assert [(x.file, x.line) for x in found if isinstance(x, Quarantined)] == [
        (str(requests), 2),
        (str(results), 2),
        (str(results), 3),
    ]
    with pytest.raises(DataError, match="requests=FILE"):
        list(registry.load("format", "openai_batch").read(results))


def test_labels_of_a_run_find_their_problems(tmp_path):
    from stepmark.data.store import Records
    from stepmark.types import LabelledSolution, Problem

    records = [r for r in foreign.records(20, seed=3) if r.labels]
    run = tmp_path / "run"
    with Records(run / "problems/train.jsonl", Problem) as out:
        out.append([r.problem for r in records])
    with Records(run / "labels/train.jsonl", LabelledSolution) as out:
        out.append([x for r in records for x in r.labels])
    (run / "config.json").write_text("{}")
    found = list(registry.load("format", "stepmark").read(run / "labels/train.jsonl"))
    assert [(x.problem, x.labels[0]) for x in found] == [(r.problem, x) for r in records for x in r.labels]
    (run / "config.json").unlink()
    bad = list(registry.load("format", "stepmark").read(run / "labels/train.jsonl"))
    assert all("problems=FILE" in x.reason for x in bad)
    named = registry.load("format", "stepmark", problems=str(run / "problems/train.jsonl"))
    assert list(named.read(run / "labels/train.jsonl")) == found


def test_labels_that_nothing_says_are_none(tmp_path):
    [found] = read(tmp_path, "stepwise", STEPWISE | {"labels": [None, True], "source": "x"})
    assert found.labels[0].labels == (exchange.NONE, exchange.RIGHT)
    assert found.extra == {"source": "x"}
