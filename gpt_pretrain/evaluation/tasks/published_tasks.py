"""Read the items of well-known tasks in their publishers' formats.

The texts are put together as in the LM Evaluation Harness, so that the numbers are comparable.

Source: the task definitions of lm-eval 0.4 for LAMBADA (OpenAI's form), HellaSwag, PIQA, ARC, WinoGrande and COPA.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from gpt_pretrain.evaluation.tasks.task_items import (
    OWN_FIELDS,
    TaskItem,
    read_label,
    read_own_item,
    read_text_field,
    read_texts_field,
)
from gpt_pretrain.system.shown_values import short_repr


def read_item(fields: Mapping[str, Any], *, line: int) -> TaskItem:
    """Return an item in any of the known formats.

    Raises:
        ValueError: If it is in none of them. The message names the missing fields.
    """
    return read_own_item(fields if OWN_FIELDS & fields.keys() else _convert_published(fields), line=line)


def _convert_published(fields: Mapping[str, Any]) -> Mapping[str, Any]:
    """Convert a publisher's item to the fields of this program's format. Return other items unchanged."""
    for needed, convert in PUBLISHED.items():
        if set(needed) <= fields.keys():
            try:
                return convert(fields)
            except (TypeError, AttributeError) as error:
                raise ValueError(f"its fields {', '.join(needed)} do not have the types of the published task") from error
    return fields


def _lambada(fields: Mapping[str, Any]) -> dict[str, Any]:
    if unexpected := fields.keys() & {"label", "answer", "choices"}:
        raise ValueError(f'it has "text" and "{min(unexpected)}": LAMBADA has only "text", and other tasks have a "context"')
    context, _, last = read_text_field(fields, "text").rpartition(" ")
    return {"context": context, "continuation": last}


def _hellaswag(fields: Mapping[str, Any]) -> dict[str, Any]:
    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return "\n".join(map(_remove_brackets, text.split("\n"))).replace("  ", " ")

    rest = read_text_field(fields, "ctx_b", may_be_empty=True).capitalize()
    endings = read_texts_field(fields, "endings")
    return {
        "context": clean(f"{read_text_field(fields, 'activity_label')}: {read_text_field(fields, 'ctx_a')} {rest}"),
        "choices": [clean(ending) for ending in endings],
        "label": read_label(fields, "label", count=len(endings), is_text=True),
    }


def _remove_brackets(line: str) -> str:
    r"""Return a line without the parts in brackets: `re.sub(r"\[.*?\]", "", line)` in linear time."""
    kept, start = [], 0
    while (opening := line.find("[", start)) >= 0 and (closing := line.find("]", opening)) >= 0:
        kept.append(line[start:opening])
        start = closing + 1
    return "".join([*kept, line[start:]])


def _piqa(fields: Mapping[str, Any]) -> dict[str, Any]:
    if fields.get("label") is None:
        raise ValueError(
            '"label" is missing. PIQA\'s labels are in a file of their own (valid-labels.lst); add them to the items'
        )
    context = f"Question: {read_text_field(fields, 'goal')}\nAnswer:"
    label = read_label(fields, "label", count=2, is_text=True)
    return {"context": context, "choices": [fields["sol1"], fields["sol2"]], "label": label}


def _arc(fields: Mapping[str, Any]) -> dict[str, Any]:
    question: Any = fields["question"]
    choices: Any = fields.get("choices")
    if isinstance(question, dict):  # the form of the original files
        question, choices = question.get("stem"), question.get("choices")
    if isinstance(choices, dict):  # columns, as on the hub
        names, texts = choices.get("label"), choices.get("text")
    else:
        pairs: list[dict[str, Any]] = [one if isinstance(one, dict) else {} for one in choices or []]
        names, texts = [one.get("label") for one in pairs], [one.get("text") for one in pairs]
    question, answer = read_text_field({"question": question}, "question"), fields["answerKey"]
    if not isinstance(names, list) or names.count(answer) != 1:
        raise ValueError(f'"answerKey" is {short_repr(answer)}, which must name one of the choices')
    if not isinstance(texts, list) or len(texts) != len(names):
        raise ValueError('"choices" does not have one text for each label')
    return {"context": f"Question: {question}\nAnswer:", "choices": texts, "label": names.index(answer)}


def _winogrande(fields: Mapping[str, Any]) -> dict[str, Any]:
    before, gap, after = read_text_field(fields, "sentence").partition("_")
    if not gap:
        raise ValueError('"sentence" has no _ where a choice stands')
    contexts = [before + read_text_field(fields, name) for name in ("option1", "option2")]
    return {
        "contexts": contexts,
        "continuation": after.strip(),
        "label": read_label(fields, "answer", count=2, first=1, is_text=True),
    }


def _copa(fields: Mapping[str, Any]) -> dict[str, Any]:
    connectors = {"cause": "because", "effect": "therefore"}
    if fields["question"] not in connectors:
        raise ValueError('"question" must be cause or effect')
    choices = [read_text_field(fields, name) for name in ("choice1", "choice2")]
    return {
        "context": f"{read_text_field(fields, 'premise').strip()[:-1]} {connectors[fields['question']]}",
        "choices": [f" {choice[0].lower()}{choice[1:]}" for choice in choices],  # lm-eval also has this second blank
        "label": read_label(fields, "label", count=2, is_text=True),
    }


# The publishers' formats, recognized by fields that no other format has.
PUBLISHED: dict[tuple[str, ...], Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    ("ctx_a", "ctx_b", "endings", "activity_label"): _hellaswag,
    ("goal", "sol1", "sol2"): _piqa,
    ("question", "answerKey"): _arc,
    ("sentence", "option1", "option2", "answer"): _winogrande,
    ("premise", "choice1", "choice2", "question"): _copa,
    ("text",): _lambada,
}
