"""Make common mistakes with models and results, and check that each message says what helps."""

from __future__ import annotations

import pytest

from tests.helpers.mistakes import COMPARE, LEADERBOARD, Script, check_message

# Name of a case: the command, and what its message says.
CASES = {
    "task_of_two_kinds": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=mixed.jsonl"),
        "tasks.path=mixed.jsonl: some items have choices and others do not. Divide them into two files.",
    ),
    "compare_nothing": ((*COMPARE,), "0 runs given, but a comparison needs at least two."),
    "compare_one": ((*COMPARE, "run"), "1 run given, but a comparison needs at least two."),
    "leaderboard_of_a_missing_file": ((*LEADERBOARD, "theirs.json"), "theirs.json: no such file or folder."),
    "leaderboard_of_a_text": ((*LEADERBOARD, "text.txt"), "text.txt: this is not a results file: it cannot be read as JSON"),
    "leaderboard_of_other_results": (
        (*LEADERBOARD, "bracket.json"),
        "gpt-pretrain leaderboard out=results.json writes such a file.",
    ),
    "leaderboard_of_a_device": (
        (*LEADERBOARD, "/dev/null"),
        "/dev/null: this file cannot be read (it is a device, not a regular file).",
    ),
    "leaderboard_as_a_picture": ((*LEADERBOARD, "out=board.png"), "out=board.png: must end in .json."),
    "leaderboard_without_path": ((*LEADERBOARD, "out="), "out= has no value. Type out=PATH"),
    "sweep_of_a_server": (("serve.py", "-m", "checkpoint=run"), "serve.py has no sweeps (-m). It serves several models at once"),
    "server_with_wrong_settings": (
        ("serve.py", "port=70000", "cors=[example.org]", "max_rows=0", "api_key=short"),
        "port=70000: must be between 0 and 65535; 0 takes any free port.",
    ),
    "time_line_of_no_run": (
        ("serve.py", "models=[run,run]", "timeline=3"),
        "timeline=3 adds checkpoints of the run that checkpoint= names. To choose others, list them instead: 'models=[",
    ),
    "answers_of_a_sweep": (
        ("generate.py", "-m", "checkpoint=run", "prompts=text.txt", "seed=1,2"),
        "so they cannot be combined with a sweep (-m).",
    ),
    "window_step_of_the_whole_window": (
        ("generate.py", "checkpoint=run", "sampler.window_step=1"),
        "must be a share of the context above 0 and below 1, such as 0.25",
    ),
    "evaluating_with_rounded_weights": (
        ("evaluate.py", "checkpoint=run", "precision=int8"),
        "precision=int8: must be one of auto, 32-true, bf16-mixed.",
    ),
    "answers_of_a_conversation": (
        ("generate.py", "checkpoint=run", "interactive=true", "out=a.jsonl"),
        "cannot be combined with out=a.jsonl",
    ),
    "stop_strings_without_text": (
        ("generate.py", "checkpoint=run", "stop=['']"),
        "must be at most 16 texts of 1 to 1,000 characters",
    ),
    "weights_twice": (
        ("generate.py", "checkpoint=run", "pretrained=gpt2"),
        "checkpoint and pretrained both name the weights to use. Set only one of them.",
    ),
    "runs_picture_of_another_kind": ((*COMPARE, "run", "run", "out=x.doc"), "out=x.doc: must end in one of .png, .pdf, .svg."),
    "report_of_nothing": (("-m", "gpt_pretrain", "report", "links"), "links: this folder holds neither a run nor a sweep"),
    "no_such_command": (
        ("-m", "gpt_pretrain", "xyz"),
        "xyz: there is no such command. Choose from train, generate, evaluate, serve, lm_eval, ",
    ),
    "task_of_another_name": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[mmlu]"),
        "tasks.names=mmlu: there is no such task. Choose from lambada, hellaswag, piqa, arc_easy, arc_challenge, winogrande, copa;",
    ),
    "tasks_from_two_places": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[piqa]", "tasks.path=pairs.jsonl"),
        "tasks.path and tasks.names cannot be combined. Evaluate twice.",
    ),
    "task_with_negative_examples": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=pairs.jsonl", "tasks.n_shots=-1"),
        "tasks.n_shots=-1: must be from 0 to 100, or null.",
    ),
    "task_without_a_connection": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[piqa]"),
        "tasks.names=piqa: baber/piqa cannot be read from the hub: ",
    ),
    "task_of_the_hub_beside_a_folder": (
        ("evaluate.py", "pretrained=gpt2", "tasks.names=[copa]"),
        "tasks.names=copa: the current folder contains a folder aps/super_glue,",
    ),
    "task_with_too_few_examples": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=pairs.jsonl", "tasks.n_shots=5"),
        "pairs: examples are drawn from its other items. That needs 6 items, but there are 2. Choose a smaller tasks.n_shots",
    ),
    "task_with_another_label": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=labels.jsonl"),
        'tasks.path=labels.jsonl, line 1: "label" is 2, but must be 0 or 1.',
    ),
    "task_with_a_field_twice": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=fields.jsonl"),
        "tasks.path=fields.jsonl, line 1: 'context' is given twice.",
    ),
    "core_without_baselines": (
        ("evaluate.py", "pretrained=gpt2", "tasks.path=core_set"),
        "tasks.path=core_set/eval_meta_data.csv cannot be used: No such file or directory.",
    ),
}


@pytest.mark.usefixtures("files")
@pytest.mark.parametrize("name", CASES)
def test_a_common_mistake_has_a_message_that_helps(script: Script, name: str) -> None:
    check_message(script, *CASES[name])
