"""The plan file: one JSON document, schema-checked, versioned, the same bytes for the same policies.

A version that is newer than this program is refused, whatever it holds. The digest guards against damage and hasty
edits; it is no signature: who may write a plan file decides what is enforced.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from importlib import resources
from typing import TYPE_CHECKING, Any, cast

from policyc.plan.decoding import decode_plan
from policyc.plan.encoding import Json, encode_core, encode_sources
from policyc.plan.model import Plan

if TYPE_CHECKING:
    import jsonschema

__all__ = ["FORMAT", "MAX_PLAN_BYTES", "VERSION", "PlanRefusedError", "core_bytes", "core_digest", "dump", "load"]

FORMAT = "policyc-plan"
VERSION = 1

MAX_PLAN_BYTES = 256 << 20
"""A plan file that is larger isn't read."""


class PlanRefusedError(ValueError):
    """The file is no plan that this program may enforce. `help` says what to do about it."""

    def __init__(self, fact: str, help: str | None = None) -> None:
        super().__init__(fact)
        self.help = help


RECOMPILE = "compile the policy again"


def core_bytes(plan: Plan) -> bytes:
    """The core in the form that is digested: equal for policies of equal meaning."""
    return _canonical(encode_core(plan))


def core_digest(plan: Plan) -> str:
    """`sha256:` and 64 hexadecimal digits over `core_bytes`."""
    return _digest(core_bytes(plan))


def dump(plan: Plan) -> str:
    """The plan file's text."""
    core = encode_core(plan)
    document: dict[str, Json] = {
        "format": FORMAT,
        "version": VERSION,
        "core_digest": _digest(_canonical(core)),
        "core": core,
        "sources": encode_sources(plan),
    }
    return json.dumps(document, indent=1, ensure_ascii=True) + "\n"


def load(data: bytes) -> Plan:
    """Read a plan file.

    Raises:
        PlanRefusedError: it is too large, no JSON, no plan, of a newer version, damaged, edited, or makes no sense.
    """
    document = _parse(data)
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PlanRefusedError("this is not a policyc plan", "give the file that `policyc compile -o` wrote")
    version = document.get("version")
    if isinstance(version, int) and version > VERSION:
        raise PlanRefusedError(
            f"the plan has format version {version}, this program reads up to {VERSION}", "update policyc"
        )
    _check_schema(document)
    if document["core_digest"] != _digest(_canonical(document["core"])):
        raise PlanRefusedError("the plan was damaged or edited: its core doesn't match `core_digest`", RECOMPILE)
    try:
        plan = decode_plan(document)
        derived = encode_core(plan)
    except ValueError as error:
        raise PlanRefusedError(f"the plan contradicts itself: {error}", RECOMPILE) from error
    if derived != document["core"]:
        raise PlanRefusedError("the plan contradicts itself: its tables don't follow from its rules", RECOMPILE)
    return plan


def _parse(data: bytes) -> object:
    if len(data) > MAX_PLAN_BYTES:
        raise PlanRefusedError(f"the plan has {len(data)} bytes, at most {MAX_PLAN_BYTES} are read")
    try:
        parsed = json.loads(data, object_pairs_hook=_unique_keys, parse_float=_no_float, parse_constant=_no_float)
        return cast("object", parsed)
    except RecursionError as error:
        raise PlanRefusedError("the plan is nested deeper than any plan is", RECOMPILE) from error
    except ValueError as error:
        raise PlanRefusedError(f"the plan is not whole: {error}", RECOMPILE) from error


def _unique_keys(pairs: Sequence[tuple[str, object]]) -> dict[str, object]:
    """Refuse what other readers might read otherwise: of two equal keys, each parser picks its own."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_float(text: str) -> object:
    """Refuse what compares equal to an integer and is none: 1.0 is no index."""
    raise ValueError(f"`{text[:20]}` is no whole number")


def _check_schema(document: object) -> None:
    from jsonschema.exceptions import best_match

    worst = best_match(_validator().iter_errors(document))
    if worst is not None:
        raise PlanRefusedError(f"the plan breaks its schema at `{worst.json_path}`: {worst.message[:200]}", RECOMPILE)


@functools.cache
def _validator() -> jsonschema.Draft202012Validator:
    # Imported here: a tenth of a second that only those pay who read a plan.
    import jsonschema

    schema: dict[str, Any] = json.loads(resources.files("policyc.plan").joinpath("schema/plan-1.json").read_bytes())
    return jsonschema.Draft202012Validator(schema)


def _canonical(core: object) -> bytes:
    return json.dumps(core, sort_keys=True, separators=(",", ":"), ensure_ascii=True).encode()


def _digest(data: bytes) -> str:
    return "sha256:" + hashlib.sha256(data).hexdigest()
