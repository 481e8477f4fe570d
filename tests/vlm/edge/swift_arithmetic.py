"""Runs the arithmetic of Classifier.swift's Pixels: its functions, translated line by line into Python.

Knows just the Swift that these functions are written in; what it does not know is a syntax error in Python.
"""

import math
import re
from types import SimpleNamespace
from typing import Any


class Double(float):
    """A number with the methods of Swift's Double."""

    def rounded(self, rule: str = "toNearestOrAwayFromZero") -> "Double":
        if rule == "toNearestOrAwayFromZero":
            return Double(math.copysign(math.floor(abs(self) + 0.5), self))
        return Double({"down": math.floor, "up": math.ceil, "toNearestOrEven": round}[rule](self))

    def squareRoot(self) -> "Double":
        return Double(math.sqrt(self))


for _name in ("add", "radd", "sub", "rsub", "mul", "rmul", "truediv", "rtruediv", "neg", "abs"):
    setattr(Double, f"__{_name}__", lambda *x, _name=f"__{_name}__": Double(getattr(float, _name)(*map(float, x))))

_REPLACEMENTS = [
    (r"//.*", ""),
    (r"\b(?:let|var) (\w+)(?:: \S+)? =", r"\1 ="),
    (r"\bfor (\w+) in (\S+)\.\.<(\S+) \{", r"for \1 in range(\2, \3):"),
    (r"\bif (.*) \{ (return .*) \}", r"if \1: \2"),
    (r"\bif (.*) \{$", r"if \1:"),
    (r"return \($", "return dict("),
    (r"return \(width: (.*)\)$", r"return dict(width: \1)"),
    (r"(\w+) \? ([^:?,()\n]+) : ([^,()\n]+)", r"(\2 if \1 else \3)"),
    (r"\b(width|height): ", r"\1="),
    (r"(\[[\d, ]+\])\.contains\((\w+)\)", r"(\2 in \1)"),
    (r"\.rounded\(\.(\w+)\)", r".rounded('\1')"),
    (r"(\w+)\.reduce\(0, \+\)", r"math.fsum(\1)"),
    (r"Double\.pi", "math.pi"),
    (r"\btrue\b", "True"),
    (r"\bfalse\b", "False"),
]


class Pixels(SimpleNamespace):
    """Swift's struct of that name. `source` is the file, `limits` are its constants in Pixels."""

    def __init__(self, source: str, limits: dict[str, Any], width: int, height: int, content: bytes = b"") -> None:
        content = list(content) or [0] * (3 * width * height)
        super().__init__(source=source, limits=limits, width=width, height=height, bytes=content)

    def call(self, function: str, *arguments: object) -> Any:
        scope = dict(self.limits, width=self.width, height=self.height, bytes=self.bytes, Double=Double, Float=Double)
        scope |= {"Int": int, "UInt8": int, "math": math, "sin": math.sin}
        types = SimpleNamespace(filterRadius=self.limits["filterRadius"], filter=lambda x: self.call("filter", x))
        scope["Pixels"] = lambda width, height: Pixels(self.source, self.limits, width, height)
        scope["Pixels"].__dict__.update(vars(types))
        exec(_translated(self.source, function), scope)
        return scope[function](*arguments)


def _translated(source: str, function: str) -> str:
    head, body = re.search(
        rf"\n    (?:static )?func {function}\((.*?)\)[^\n]*\{{\n(.*?)\n    \}}\n", source, re.DOTALL
    ).groups()
    names = [re.search(r"(\w+):", parameter)[1] for parameter in head.split(",")]
    lines = [line for line in body.splitlines() if line.strip() not in ("}", "")]
    if len(lines) == 1:
        lines = [f"return {lines[0].strip()}"]
    text = "\n".join(lines)
    for pattern, replacement in _REPLACEMENTS:
        text = re.sub(pattern, replacement, text, flags=re.MULTILINE)
    indent = "" if text.startswith(" ") else " " * 8
    return f"def {function}({', '.join(names)}):\n{indent}{text}\n"
