"""Values, edits and passes of a graph in words, as its explanation and its drawing put them."""

import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from regap_interp.graph.edits import Edit
from regap_interp.graph.nodes import (
    Arithmetic,
    At,
    Compare,
    Constant,
    IsModality,
    Lens,
    Logic,
    Mean,
    Node,
    Number,
    Project,
    Read,
    Select,
    Steps,
)
from regap_interp.graph.places import label

_LONGEST = 240
_SIGNS = {">": ">", ">=": "\u2265", "<": "<", "<=": "\u2264"}
_TIMES = "\u00d7"
_ATOM, _PRODUCT, _SUM, _COMPARED, _NOT, _AND, _OR, _CHOICE = range(8, 0, -1)


def expression(node: Node, names: Mapping[Node, str] | None = None) -> str:
    """A value as one line, such as `-1.5 if gain ≥ 3 else -0.5`.

    Args:
        node: The value.
        names: Values to call by a name instead of saying how they are computed.
    """
    known = names or {}
    texts = _Texts()
    waiting: list[tuple[Node, bool]] = [(node, False)]
    while waiting:  # no recursion: chains may be long
        one, ready = waiting.pop()
        if one in texts:
            continue
        if one in known:
            texts[one] = (known[one], _ATOM)
        elif ready:
            text, level = _text(one, texts)
            texts[one] = (shortened(text), level)
        else:
            waiting.append((one, True))
            waiting.extend((child, False) for child in one.inputs())
    return texts[node][0]


def describe_edit(edit: Edit, names: Mapping[Node, str] | None = None) -> str:
    """An edit as one line: what, where, at which positions, how strong."""
    where = label(edit.site, edit.layer) + ("" if edit.head is None else f" head {edit.head}")
    value = expression(edit.value, names)
    match edit.op:
        case "add":
            what = f"add {value} to {where}"
        case "remove":
            what = f"remove {value} from {where}"
        case "set_coordinate":
            to = "" if edit.to is None else f" to {expression(edit.to, names)}"
            what = f"set the coordinate of {where} along {value}{to}"
        case "replace":
            what = f"replace {where} by {value}"
    parts = [what, positions(edit.at, edit.phase), strength(edit, names)]
    parts.append("length kept" if edit.keep_norm else "")
    return ", ".join(part for part in parts if part)


def strength(edit: Edit, names: Mapping[Node, str] | None = None) -> str:
    """How strong an edit is: `strength = ...`, or nothing when it is 1 for every row."""
    if isinstance(edit.strength, Number) and edit.strength.value == 1:
        return ""
    return f"strength = {expression(edit.strength, names)}"


def positions(at: At, phase: str = "prefill") -> str:
    """A position rule in words, with the phase where it is not the prefill."""
    match at:
        case Steps(start, None):
            return "every decoding step" if start == 1 else f"decoding steps from {start}"
        case Steps(start, stop):
            assert stop is not None
            last = stop - 1
            return f"decoding step {start}" + ("" if last == start else f" to {last}")
        case tuple():
            where = f"position{'s' * (len(at) > 1)} {', '.join(map(str, at))}"
        case "last":
            where = "last prompt token"
        case "prompt":
            where = "whole prompt"
        case _:
            where = f"{at} tokens"
    return {
        "prefill": where,
        "decode": "every decoding step",
        "both": f"{where} and every decoding step",
    }[phase]


def pass_name(under: Sequence[Edit] | None) -> str:
    """The pass that a read belongs to, from its `under`."""
    if under is None:
        return "main pass"
    if not under:
        return "bare model"
    return f"probe: {_brief(under)}"


def layers(numbers: Iterable[int]) -> str:
    """Layer numbers, runs drawn together: `0-3, 7`."""
    runs: list[list[int]] = []
    for number in sorted(set(numbers)):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{r[0]}-{r[-1]}" if len(r) > 1 else str(r[0]) for r in runs)


def shortened(text: str, longest: int = _LONGEST) -> str:
    """`text`, its middle left out when it is too long."""
    if len(text) <= longest:
        return text
    half = (longest - 3) // 2
    return f"{text[:half]} \u2026 {text[-half:]}"


def _brief(edits: Sequence[Edit]) -> str:
    if len(edits) > 2:
        return f"{len(edits)} edits"
    return " and ".join(
        f"{edit.op.replace('_', ' ')} {label(edit.site, edit.layer)} {_TIMES}"
        + (f"{edit.strength.value:g}" if isinstance(edit.strength, Number) else "per row")
        for edit in edits
    )


class _Texts(dict[Node, tuple[str, int]]):
    """Every value's text, with how tightly it binds."""

    def of(self, node: Node, least: int = _ATOM) -> str:
        """The text of a value, in brackets if it binds less tightly than `least`."""
        text, level = self[node]
        return text if level >= least else f"({text})"


def _text(node: Node, texts: _Texts) -> tuple[str, int]:
    of = texts.of
    match node:
        case Read():
            return _read(node), _ATOM
        case Constant():
            return _constant(node), _ATOM
        case Number():
            return f"{node.value:g}", _ATOM
        case Mean():
            return f"mean of {of(node.of)}", _ATOM
        case Project():
            relative = "relative " if node.unit == "norm" else ""
            return f"{relative}coordinate of {of(node.of)} along {_axis(node)}", _ATOM
        case Lens():
            what = "all tokens" if node.tokens is None else f"{len(node.tokens)} token(s)"
            return f"lens of {of(node.of)} on {what}", _ATOM
        case Arithmetic():
            clipped = _clipped(node)
            if clipped is not None and clipped[0] in texts:
                value, low, high = clipped
                return f"{of(value)} clipped to [{of(low)}, {of(high)}]", _ATOM
            return _arithmetic(node, texts)
        case Compare():
            return f"{of(node.left, _SUM)} {_SIGNS[node.op]} {of(node.right, _SUM)}", _COMPARED
        case Logic("not", (gate,)):
            return f"not {of(gate, _NOT)}", _NOT
        case Logic():
            level = _AND if node.op == "and" else _OR
            return f" {node.op} ".join(of(gate, level) for gate in node.of), level
        case Select():
            return (
                f"{of(node.then, _OR)} if {of(node.gate, _OR)} else {of(node.otherwise, _OR)}",
                _CHOICE,
            )
        case IsModality():
            return f"row is {node.modality}", _COMPARED
    return type(node).__name__, _ATOM


def _arithmetic(node: Arithmetic, texts: _Texts) -> tuple[str, int]:
    of, left, right = texts.of, node.left, node.right
    match node.op:
        case "*" if isinstance(right, Number) and right.value == -1:
            return f"-{of(left, _PRODUCT)}", _PRODUCT
        case "*":
            return f"{of(left, _PRODUCT)} {_TIMES} {of(right, _PRODUCT)}", _PRODUCT
        case "/":
            return f"{of(left, _PRODUCT)} / {of(right, _ATOM)}", _PRODUCT
        case "+":
            return f"{of(left, _SUM)} + {of(right, _SUM)}", _SUM
        case "-":
            return f"{of(left, _SUM)} - {of(right, _PRODUCT)}", _SUM
    words = "the smaller" if node.op == "min" else "the larger"
    return f"{words} of {of(left, _ATOM)} and {of(right, _ATOM)}", _ATOM


def _clipped(node: Arithmetic) -> tuple[Node, Node, Node] | None:
    """What `Node.clip` clips, and between which numbers."""
    inner, high = node.left, node.right
    if node.op != "min" or not isinstance(inner, Arithmetic) or inner.op != "max":
        return None
    return (inner.left, inner.right, high) if isinstance(high, Number) else None


def _read(node: Read) -> str:
    text = label(node.site, node.layer) + ("" if node.head is None else f" head {node.head}")
    if node.at != "last":
        text += f" at {positions(node.at, node.phase)}"
    elif node.phase == "decode":
        text += " at every decoding step"
    if node.under is None:
        return text
    return f"{text} of the bare model" if not node.under else f"{text} under {_brief(node.under)}"


def _axis(node: Project) -> str:
    """The direction, "its" when it was measured where the state is read."""
    origin, of = node.vector.origin, node.of
    states = of.of if isinstance(of, Mean) else of
    if origin is None or not isinstance(states, Read):
        return _constant(node.vector)
    here = (origin.site, origin.layer) == (states.site, states.layer)
    return "its direction" if here else _constant(node.vector)


def _constant(node: Constant) -> str:
    if node.origin is not None:
        return f"direction of {label(node.origin.site, node.origin.layer)}"
    if node.value.ndim == 1:
        return "a fixed direction"
    return f"fixed states [{', '.join(map(str, node.value.shape))}]"


def printable(text: str) -> str:
    """`text` on one line, with a visible mark for every character that is none."""
    one_line = " ".join(text.split())
    return "".join(
        "\ufffd" if unicodedata.category(character) in ("Cc", "Cf", "Cs", "Cn") else character
        for character in one_line
    )
