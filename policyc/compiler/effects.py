"""Effects as written to effects as the plan has them: words, vectors and bits looked up in the catalogue."""

from __future__ import annotations

from policyc.catalog import CONTROL_BITS, EFFECTS, MECHANISM_WORDS, VECTORS, EffectKind
from policyc.compiler.operands import REGISTER_OF_BIT, register_of
from policyc.diagnostics import Diagnostic, did_you_mean
from policyc.lang import ast
from policyc.plan.model import Effect, EventKey

__all__ = ["MAX_RETRIES", "apply_mechanism", "resolve_effect", "wrong_pins"]

MAX_RETRIES = 1000
"""More of the same event than this, answered RETRY, is a loop and no patience."""

_BITS = {word: mask for bits in CONTROL_BITS.values() for word, mask in bits.items()}


def resolve_effect(written: ast.Effect) -> tuple[Effect | None, list[Diagnostic]]:
    """The effect, or None with the reasons."""
    match written:
        case ast.PlainEffect(word):
            return Effect(EFFECTS[word.text].kind), []
        case ast.InjectEffect(_, vector):
            return _inject(vector)
        case ast.PinEffect(_, bits):
            return _pin(bits)
        case ast.RetryEffect(_, count, then):
            return _retry(count, then)


def apply_mechanism(effect: Effect, word: ast.Word) -> tuple[Effect | None, list[Diagnostic]]:
    """What `by skip` or `by fault` makes of a `deny`."""
    kind = MECHANISM_WORDS.get(word.text)
    if kind is None:
        near = did_you_mean(word.text, MECHANISM_WORDS)
        help = f"did you mean `by {near}`?" if near else "write `by skip` or `by fault`"
        return None, [Diagnostic("P209", f"there is no way called `{word.text}`", word.span, help)]
    if effect.kind is not EffectKind.DENY:
        fact = f"`by {word.text}` says how a `deny` is carried out, and this effect is no `deny`"
        return None, [Diagnostic("P305", fact, word.span, "leave it out, or write `deny`")]
    argument = VECTORS["gp"] if kind is EffectKind.FAULT else 0
    return Effect(kind, argument, effect.retries), []


def wrong_pins(written: ast.Effect, event: EventKey) -> list[Diagnostic]:
    """The bits of a `pin` that the event's register doesn't have; none where the event has no named bits at all."""
    if isinstance(written, ast.RetryEffect):
        return wrong_pins(written.then, event)
    register = register_of(event)
    if register is None or not isinstance(written, ast.PinEffect):
        return []
    return [
        Diagnostic(
            "P308",
            f"`{bit.text}` is a bit of {REGISTER_OF_BIT[bit.text]}, not of {register}",
            bit.span,
            f"name a bit of {register}",
        )
        for bit in written.bits
        if REGISTER_OF_BIT.get(bit.text, register) != register
    ]


def _inject(vector: ast.Word | ast.Number) -> tuple[Effect | None, list[Diagnostic]]:
    if isinstance(vector, ast.Word):
        number = VECTORS.get(vector.text)
    else:
        number = vector.value if vector.value in VECTORS.values() else None
    if number is not None:
        return Effect(EffectKind.INJECT, number), []
    near = did_you_mean(vector.text, VECTORS)
    legal = ", ".join(f"`{word}` ({value})" for word, value in VECTORS.items())
    fact = (
        f"the exception `{vector.text}` can't be injected: it would stop the vCPU, loop, or need facts the event lacks"
    )
    help = f"did you mean `{near}`?" if near else f"one of {legal}"
    return None, [Diagnostic("P302", fact, vector.span, help)]


def _pin(bits: tuple[ast.Word, ...]) -> tuple[Effect | None, list[Diagnostic]]:
    mask, found = 0, []
    for bit in bits:
        if bit.text in _BITS:
            mask |= _BITS[bit.text]
        else:
            near = did_you_mean(bit.text, _BITS)
            help = f"did you mean `{near}`?" if near else "name bits of cr0, cr4 or efer, such as `wp` or `smep`"
            found.append(Diagnostic("P209", f"no control register has a bit `{bit.text}`", bit.span, help))
    return (None if found else Effect(EffectKind.PIN, mask)), found


def _retry(count: ast.Number, then: ast.Effect) -> tuple[Effect | None, list[Diagnostic]]:
    effect, found = resolve_effect(then)
    if not 1 <= count.value <= MAX_RETRIES:
        found = [*found, Diagnostic("P302", f"`{count.text}` retries are not between 1 and {MAX_RETRIES}", count.span)]
    if effect is not None and (effect.retries or effect.kind is EffectKind.ALLOW):
        fact = "`retry` ends in one effect that stops, logs or crashes, not in `retry` or `allow`"
        found = [*found, Diagnostic("P305", fact, then.span)]
    if found or effect is None:
        return None, found
    return Effect(effect.kind, effect.argument, count.value), []
