"""`with FIELD = VALUE` of a test case: fields of the event, as numbers.

Fields and values are read as they are in conditions, `FIELD == VALUE`; the value must be a constant.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from policyc.catalog import FIELDS, carries
from policyc.compiler.operands import OperandReader, Scene
from policyc.diagnostics import Diagnostic, did_you_mean
from policyc.lang import ast
from policyc.plan.conditions import Number

__all__ = ["resolve_settings"]


def resolve_settings(
    settings: Sequence[ast.Setting], scene: Scene, given: Mapping[str, str], diagnostics: list[Diagnostic]
) -> Mapping[str, int]:
    """The fields that a case sets; what is wrong is appended to `diagnostics`.

    Args:
        scene: what the case is about.
        given: fields that the case says elsewhere, and where.
    """
    fields: dict[str, int] = {}
    for setting in settings:
        word = setting.name.text
        wrong = _wrong_field(setting.name, scene, fields, given)
        if wrong is not None:
            diagnostics.append(wrong)
            continue
        value = _value(setting, OperandReader(scene, diagnostics))
        if isinstance(value, Diagnostic):
            diagnostics.append(value)
        elif value is not None:
            fields[word] = value
    return fields


def _wrong_field(
    name: ast.Word, scene: Scene, earlier: Mapping[str, int], given: Mapping[str, str]
) -> Diagnostic | None:
    """Why the field isn't one to be set here, besides that the event lacks it."""
    if name.text in given:
        return Diagnostic("P305", f"`{name.text}` is said by {given[name.text]}", name.span, "leave it out")
    if name.text in earlier:
        return Diagnostic("P205", f"`{name.text}` is set twice", name.span, "keep one of the two")
    if name.text in FIELDS:
        return None
    columns = scene.ordered_columns
    known = [word for word, spec in FIELDS.items() if word not in given and all(carries(c, spec) for c in columns)]
    near = did_you_mean(name.text, known)
    help = f"did you mean `{near}`?" if near else f"the fields are {', '.join(f'`{word}`' for word in known)}"
    return Diagnostic("P209", f"there is no field `{name.text}`", name.span, help)


def _value(setting: ast.Setting, reader: OperandReader) -> int | Diagnostic | None:
    """The value of the field; None where the reader has said what is wrong."""
    field, value = reader.read(setting.name), reader.read(setting.value)
    if field is None or value is None or not reader.bits_fit((field, value)):
        return None
    text, span = setting.value.span.text, setting.value.span
    if not isinstance(value.value, Number):
        return Diagnostic("P302", f"`{text}` isn't fixed", span, "give a number, or bits joined with `|`")
    if value.value.value not in FIELDS[setting.name.text].values:
        return Diagnostic("P302", f"`{setting.name.text}` is never `{text}`", span)
    return value.value.value
