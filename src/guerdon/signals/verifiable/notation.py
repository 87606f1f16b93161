r"""One way of writing mathematics for many: the table that stands before the parser.

`notation` takes an expression as people, Unicode, plain-text programs or LaTeX write it and returns LaTeX that latex2sympy reads as
they meant it. It changes signs, never values, and knows nothing of sympy, so it is fast, linear and can be tested by reading.
Every row of the tables below is one kind of writing; what it is for stands beside it.

Assumptions: the text is one answer, without prose around it (`location` finds it). Left out: units (`quantities`), lists (`equality`).
"""

from __future__ import annotations

import html
import re
import unicodedata

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱˣᵏᵐ", "0123456789+-=()nixkm", strict=True))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₌₍₎ₙᵢₖₘₓ", "0123456789+-=()nikmx", strict=True))
_GREEK_CHARS = "αβγδεζηθικλμνξπρστυφχψωΓΔΘΛΞΠΣΦΨΩϵϕϑ"
_GREEK_WORDS = (
    "alpha beta gamma delta epsilon zeta eta theta iota kappa lambda mu nu xi pi rho sigma tau upsilon phi chi psi omega "
    "Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega varepsilon varphi vartheta"
)
_GREEK = {char: f"\\{name} " for char, name in zip(_GREEK_CHARS, _GREEK_WORDS.split(), strict=True)}
# One character (or a few) -> its LaTeX.
_SIGNS = {
    **_GREEK,
    **dict.fromkeys("−–‐‑﹣－", "-"),  # minus, en dash, hyphens
    **dict.fromkeys("×✕✖⨯", "\\times "),
    **dict.fromkeys("·⋅∙•‧・", "\\cdot "),
    **dict.fromkeys("÷∕⁄／", "/"),
    **dict.fromkeys("∗＊", "*"),
    **dict.fromkeys("≤⩽≦", "\\le "),
    **dict.fromkeys("≥⩾≧", "\\ge "),
    **dict.fromkeys("≈≃≅≒", "\\approx "),
    **dict.fromkeys("　\u00a0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u202f\u205f", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\u2061\u2062\u2063\u2064\ufeff\u00ad\u200e\u200f\u202a\u202b\u202c\u202d\u202e", ""),
    **dict.fromkeys("“”„«»〝〞「」『』", '"'),
    **dict.fromkeys("‘’‚", "'"),
    **dict.fromkeys("，、", ","),
    "≠": "\\ne ", "∞": "\\infty ", "±": "\\pm ", "∓": "\\mp ", "∈": "\\in ", "∪": "\\cup ", "∩": "\\cap ", "∅": "\\emptyset ",
    "ℝ": "\\mathbb{R}", "ℤ": "\\mathbb{Z}", "ℕ": "\\mathbb{N}", "ℚ": "\\mathbb{Q}", "ℂ": "\\mathbb{C}", "→": "\\to ", "°": "^\\circ ",
    "º": "^\\circ ", "′": "'", "″": "''", "ℯ": "e", "ⅈ": "i", "ⅇ": "e", "⟨": "\\langle ", "⟩": "\\rangle ", "∠": "\\angle ",
    "；": ";", "：": ":", "（": "(", "）": ")", "［": "[", "］": "]", "｛": "{", "｝": "}", "＝": "=", "＜": "<", "＞": ">", "％": "\\%",
    "。": ".", "．": ".", "＋": "+", "｜": "|", "∣": "|", "⌊": "\\lfloor ", "⌋": "\\rfloor ", "⌈": "\\lceil ", "⌉": "\\rceil ",
    "∧": "\\land ", "∨": "\\lor ", "∫": "\\int ", "∑": "\\sum ", "∏": "\\prod ",
}  # fmt: skip
_SIGN = re.compile("|".join(map(re.escape, _SIGNS)))
_RAISED = re.compile(f"[{''.join(map(re.escape, _SUPERSCRIPTS))}]+")
_LOWERED = re.compile(f"[{''.join(map(re.escape, _SUBSCRIPTS))}]+")
_ROOT = re.compile(r"([√∛∜])\s*(?=(\(|\{)|(\d+(?:\.\d+)?|[A-Za-z]|\\[A-Za-z]+))")
_ROOT_OF = {"√": "\\sqrt", "∛": "\\sqrt[3]", "∜": "\\sqrt[4]"}
_HTML_TAG = re.compile(
    r"</?(?:b|i|u|em|strong|span|p|br|div|code|sub|sup|font|center|mark|math|h[1-6])\b[^<>]{0,200}>", re.I
)

_FUNCTION_NAMES = (
    "arcsin arccos arctan arccot arcsec arccsc arsinh arcosh artanh sinh cosh tanh coth sin cos tan cot sec csc log ln lg exp "
    "sqrt gcd lcm max min det arg deg dim ker"
)
FUNCTIONS = _FUNCTION_NAMES.split()
_SPOKEN = {"asin": "arcsin", "acos": "arccos", "atan": "arctan", "tg": "tan", "ctg": "cot", "arctg": "arctan", "cosec": "csc",
           "arcctg": "arccot", "arcsinh": "arsinh", "arccosh": "arcosh", "arctanh": "artanh", "asinh": "arsinh", "acosh": "arcosh",
           "atanh": "artanh"}  # fmt: skip
CONSTANTS = {
    "pi": "\\pi", "Pi": "\\pi", "PI": "\\pi", "infinity": "\\infty", "inf": "\\infty", "oo": "\\infty", "Infinity": "\\infty",
    "theta": "\\theta", "alpha": "\\alpha", "beta": "\\beta", "gamma": "\\gamma", "delta": "\\delta", "lambda": "\\lambda",
    "omega": "\\omega", "phi": "\\phi", "mu": "\\mu", "sigma": "\\sigma", "epsilon": "\\epsilon", "rho": "\\rho", "tau": "\\tau",
}  # fmt: skip
_NAMES = {name: f"\\{name}" for name in FUNCTIONS} | {k: f"\\{v}" for k, v in _SPOKEN.items()} | CONSTANTS
_GREEK_NAMES = "|".join(name for name in CONSTANTS if name not in ("inf", "oo"))
_BARE_NAME = re.compile(
    # Not inside a longer word, a LaTeX command or a subscript; a coefficient may stand before it ("5pi", "2sqrt(3)", "xsin(x)").
    rf"(?<![A-Za-z\\_])({'|'.join(sorted(_NAMES, key=len, reverse=True))})(?![A-Za-z])"
)

_TEXT = r"\\(?:text(?:normal|bf|it|rm|sf|tt|up|md|sc)?|math(?:rm|bf|it|sf|tt|normal|up)|operatorname\*?|mbox|hbox|emph|boldsymbol|bm|pmb)"
_TEXT_COMMAND = re.compile(rf"{_TEXT}\s*\{{((?:[^{{}}]|\{{[^{{}}]*\}})*)\}}")
_UPRIGHT = re.compile(
    r"\\(?:mathrm|mathbf|mathit|mathsf|mathnormal|boldsymbol|bm|pmb|mathup)\s*(\\[A-Za-z]+|[A-Za-z0-9])"
)
_SWITCH = re.compile(
    r"\\(?:bf|rm|it|sf|displaystyle|textstyle|scriptstyle|limits|nolimits|normalsize|large|Large|small)(?![A-Za-z])"
)
_SIZE = re.compile(r"\\(?:left|right|middle|[bB]igg?[lrm]?)(?![A-Za-z])\s*(\.(?!\d))?")
_SPACE = re.compile(
    r"(?<!\\)\\[,;:!> ]|\\(?:quad|qquad|enspace|thinspace|medspace|thickspace|hfill)(?![A-Za-z])|(?<!\\)~|\\\n|\\h?space\*?\{[^{}]*\}|\\hskip\s*-?[\d.]+\s*\w\w|\\phantom\{[^{}]*\}"
)
_WORD_LIST = re.compile(r"\s*(?:,\s*)?(?<![A-Za-z\\])(?:and|or|und|oder|et|ou|y|и|或|和|及)(?![A-Za-z])\s*")
_NUMBER_IN_TEXT = re.compile(r"[-+]?[\d.,/%\\ ]*\d[\d.,/%\\ ]*")
ALL_REALS = re.compile(
    r"(?:\\(?:text|mathrm)\s*\{)?\s*(?:the set of )?(?:all )?(?:the )?(?:real numbers|reals)\s*\}?", re.I
)
_COMMANDS = (
    # -- one name for many
    (re.compile(r"\{\s*([^{}\\]{1,20}?)\s*\\choose\s*([^{}\\]{1,20}?)\s*\}"), r"\\binom{\1}{\2}"),
    (re.compile(r"\\(?:d|t|c)frac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\sfrac(?![A-Za-z])"), r"\\frac"),
    (re.compile(r"\\(?:leqslant|leqq|leq)(?![A-Za-z])"), r"\\le "),
    (re.compile(r"\\(?:geqslant|geqq|geq)(?![A-Za-z])"), r"\\ge "),
    (re.compile(r"\\neq(?![A-Za-z])"), r"\\ne "),
    (re.compile(r"<="), r"\\le "),
    (re.compile(r">="), r"\\ge "),
    (re.compile(r"!="), r"\\ne "),
    (re.compile(r"\\lt(?![A-Za-z])"), "<"),
    (re.compile(r"\\gt(?![A-Za-z])"), ">"),
    (re.compile(r"\\(?:simeq|approxeq|thickapprox|doteq|fallingdotseq)(?![A-Za-z])|~="), r"\\approx "),
    (re.compile(r"\\(?:varnothing|empty)(?![A-Za-z])|\\O(?![A-Za-z])"), r"\\emptyset "),
    (re.compile(r"\\(?:lbrace|lbrack)(?![A-Za-z])"), lambda m: "\\{" if "brace" in m[0] else "["),
    (re.compile(r"\\(?:rbrace|rbrack)(?![A-Za-z])"), lambda m: "\\}" if "brace" in m[0] else "]"),
    (re.compile(r"\\(?:lvert|rvert|vert|mid)(?![A-Za-z])"), "|"),
    (re.compile(r"\\(?:degree|textdegree)(?![A-Za-z])|\^\s*\{\s*\\circ\s*\}|\^\s*o(?![A-Za-z])"), r"^\\circ "),
    (re.compile(r"\\(?:ldots|cdots|dots|dotsc|dotsb)(?![A-Za-z])"), "..."),
    (re.compile(r"\\(?:imath|mathrm\{i\})(?![A-Za-z])"), "i"),
    (re.compile(r"\\(?:ast|star|bullet)(?![A-Za-z])"), r"\\cdot "),
    (re.compile(r"\\div(?![A-Za-z])"), "/"),
    (re.compile(r"\\(?:tg|ctg|arctg|arcctg|cosec)(?![A-Za-z])"), lambda m: _NAMES[m[0][1:]]),
    (re.compile(r"\\(?:ensuremath|mathop|mathord|overset\{[^{}]*\}|underline|textcolor\{[^{}]*\}|color\{[^{}]*\})(?![A-Za-z])"), ""),
    (re.compile(r"\\(?:textdollar|pounds|euro)(?![A-Za-z])|\\\$"), r"\\$"),
)  # fmt: skip


def notation(text: str) -> str:
    """LaTeX for latex2sympy of one expression, on one line, whatever way it is written. Linear in the text's length."""
    text = _unicode(_markup(text))
    text = _latex(text)
    text = _plain(text)
    return " ".join(_numbers(text).split())


def _markup(text: str) -> str:
    if "&" in text and "\\" not in text:
        text = html.unescape(text)
    return _HTML_TAG.sub(_tag, text) if "<" in text else text


def _tag(found: re.Match[str]) -> str:
    """<sup>2</sup> is a power, <sub>1</sub> an index; every other tag is nothing but a border."""
    name = found[0].strip("</> ").lower()
    if name in ("sup", "sub"):
        return "}" if found[0].startswith("</") else "^{" if name == "sup" else "_{"
    return " "


def _unicode(text: str) -> str:
    if text.isascii():
        return text
    text = _ROOT.sub(_root, text)
    text = _SIGN.sub(lambda found: _SIGNS[found[0]], text)
    text = _RAISED.sub(lambda found: "^{" + "".join(_SUPERSCRIPTS[c] for c in found[0]) + "}", text)
    text = _LOWERED.sub(lambda found: "_{" + "".join(_SUBSCRIPTS[c] for c in found[0]) + "}", text)
    return text if text.isascii() else "".join(map(_compatible, text))


def _root(found: re.Match[str]) -> str:
    return _ROOT_OF[found[1]] if found[2] else f"{_ROOT_OF[found[1]]} "


def _compatible(char: str) -> str:
    """Fractions like ½ as \frac, digits of every script and mathematical letters as ASCII; the rest as it is."""
    if char.isascii():
        return char
    name = unicodedata.normalize("NFKC", char)
    if "\u2044" in name:
        top, bottom = name.split("\u2044")
        return f"\\frac{{{top}}}{{{bottom or 1}}}"
    if unicodedata.category(char) == "Nd":
        return str(unicodedata.digit(char))
    return name if name.isascii() else char


def _latex(text: str) -> str:
    if "\\" in text or "{" in text or "~" in text:
        if "matrix" not in text and "array" not in text and "cases" not in text and "align" not in text:
            text = re.sub(r"\\\\(?=[A-Za-z])", r"\\", text)  # JSON that was escaped twice
        text = re.sub(r"(?<=\d)(?:\\[,;:! ]|~|\{,\}|\{\s\}|\\thinspace\s?)\s*(?=\d{3}(?!\d))", "", text)
        text = re.sub(r"(?<=\d),\s*\\!\s*(?=\d{3}(?!\d))", ",", text.replace("{,}", ","))
        text = _SIZE.sub("", _SPACE.sub(" ", _SWITCH.sub("", text)))
        for _ in range(3):  # \text{\mathbf{4}} nests
            text, count = _TEXT_COMMAND.subn(_text_command, text)
            if not count:
                break
        text = _UPRIGHT.sub(r"\1", text)
        text = text.replace('"', "").replace("\\ddfrac", "\\frac")
    for pattern, replacement in _COMMANDS:
        text = pattern.sub(replacement, text)
    text = re.sub(r"(?<![\\\d])\$(?!\d)|(?<=\d)\$$", "", text)
    return re.sub(r"_\{(\w)\}", r"_\1", text)


def _text_command(found: re.Match[str]) -> str:
    r"""What stands in \text{...} and its like: numbers, names of functions and upright constants are mathematics, the rest words."""
    content = " ".join(found[1].split())
    if not content:
        return " "
    if _NUMBER_IN_TEXT.fullmatch(content):
        return f"{content} "
    if ALL_REALS.fullmatch(content):
        return "\\mathbb{R}"
    if content in ("min", "deg") and found.string[: found.start()].rstrip()[-1:] in "0123456789}":
        return f"\\text{{{content}}}"  # minutes, degrees
    if content in _NAMES:
        return f"{_NAMES[content]} "
    if _WORD_LIST.fullmatch(content):
        return " , "
    if len(content) == 1 or content.startswith("\\") or not re.search(r"[A-Za-z]{2}|[^\x00-\x7f]", content):
        return f" {content} " if content.isalpha() and content not in "ei" else content
    if number := re.match(r"([-+]?\d[\d,]*(?:\.\d+)?(?:/\d+)?)\s*(?=[A-Za-z])", content):
        return f"{number[1]}\\text{{{content[number.end() :]}}}"
    return f"\\text{{{content}}}"


def _plain(text: str) -> str:
    """Mathematics in plain text, as programs write it."""
    if "**" in text:
        text = text.replace("**", "^")
    text = re.sub(r"(?<=\d)\s*[xX]\s*(?=10\s*\^)", r"\\times ", text)
    text = re.sub(r"(?<!\\)\*", r"\\cdot ", text)
    parts = re.split(r"(\\text\{[^{}]*\}|\\begin\{[^{}]*\}(?:\{[^{}]*\})?|\\end\{[^{}]*\})", text)
    for i in range(0, len(parts), 2):
        parts[i] = _BARE_NAME.sub(lambda found: f"{_NAMES[found[1]]} ", parts[i])
        parts[i] = re.sub(rf"(?<=\d)({_GREEK_NAMES})(?![A-Za-z])", lambda found: f"{CONSTANTS[found[1]]} ", parts[i])
    text = "".join(parts)
    text = _MULTIPLIER.sub(lambda found: f" \\cdot {_MULTIPLIERS[found[1].lower()]} ", text)
    text = _arguments(text)
    text = re.sub(
        r"\^\s*(-?\d{2,}(?:\.\d+)?|-\d|-[A-Za-z]|\d+\.\d+)", r"^{\1}", text
    )  # 10^-3 and 2^10 as people mean them
    text = re.sub(r"\^\s*\{\s*\(([^(){}]*)\)\s*\}", r"^{\1}", text)
    text = re.sub(r"\\sqrt\s*(\d{2,})(?![\d}])", r"\\sqrt{\1}", text)
    return re.sub(r"\\log\s*_\s*(\d+)(?!\d)", r"\\log_{\1}", text)


_MULTIPLIERS = {
    "dozen": "12",
    "hundred": "10^{2}",
    "thousand": "10^{3}",
    "million": "10^{6}",
    "billion": "10^{9}",
    "trillion": "10^{12}",
}
_MULTIPLIER = re.compile(rf"(?<=\d)\s*(?:\\text\s*\{{)?\s*({'|'.join(_MULTIPLIERS)})s?\s*\}}?(?![A-Za-z])", re.I)
_OPENING = re.compile(r"(\\sqrt(?:\[\d+\])?|\\exp|\^|\\operatorname\{abs\}|(?<![A-Za-z\\])(?:abs|cbrt))\s*\(")


def _arguments(text: str) -> str:
    """sqrt(...), exp(...), abs(...) and ^(...) with braces; brackets are counted, so nested ones stay whole."""
    if "(" not in text:
        return text
    out, at = [], 0
    while found := _OPENING.search(text, at):
        end = closing(text, found.end() - 1)
        if end is None:
            break
        inner = text[found.end() : end]
        inner = _arguments(inner) if len(inner) < 300 else inner  # nested, yet bounded
        name = found[1]
        before = {"\\exp": "e^{", "^": "^{", "abs": "|", "\\operatorname{abs}": "|", "cbrt": "\\sqrt[3]{"}.get(
            name, name + "{"
        )
        out += [text[at : found.start()], before, inner, "|" if before == "|" else "}"]
        at = end + 1
    return "".join((*out, text[at:]))


def closing(text: str, start: int) -> int | None:
    """Where the bracket that opens at `start` closes; None where it does not."""
    depth = 0
    for place in range(start, len(text)):
        if text[place] in "([{":
            depth += 1
        elif text[place] in ")]}":
            depth -= 1
            if depth == 0:
                return place
    return None


_DIGITS = r"\d+(?:\.\d+)?"
_MIXED_FRACTION = r"\\frac\s*(?:\{\s*\d+\s*\}|\d)\s*(?:\{\s*\d+\s*\}|\d)"
_NUMBERS = (
    (re.compile(rf"(?<![\w.\\}}])({_DIGITS})\s?[eE]([-+]?\d{{1,6}})(?![\w.])"), lambda m: f"{m[1]} \\cdot 10^{{{int(m[2])}}}"),
    (re.compile(r"(?<![\d.,/^_ ])(?<![\d] )([1-9]\d{0,2})((?: \d{3})+)(?![\d/.,]?\d)(?! \d)"), lambda m: m[0].replace(" ", "")),  # 12 345
    (re.compile(r"(?<![\d.,_'])([1-9]\d{0,2})((?:'\d{3})+)(?!\d)"), lambda m: m[0].replace("'", "")),  # Swiss 1'234
    (re.compile(r"(?<![\d.,/^_}])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/.^])"), lambda m: f"{m[1]}\\frac{{{m[2]}}}{{{m[3]}}}"),  # 1 1/2
    (re.compile(rf"(?<![\d.,/^_}}])(\d+)\s+({_MIXED_FRACTION})"), lambda m: f"{m[1]}{m[2]}"),
    (re.compile(r"(?<![\w.])(\d*)\.(\d*)\\(?:overline|bar|dot|overbar)\s*(?:\{\s*(\d+)\s*\}|(\d))"), lambda m: _repeating(m[1], m[2], m[3] or m[4])),
    (re.compile(r"(?<![\w.])(\d*)\.(\d*)\\dot\{(\d)\}(\d*)\\dot\{(\d)\}"), lambda m: _repeating(m[1], m[2], m[3] + m[4] + m[5])),
    (re.compile(r"(?<![\w.])(\d*)\.(\d*)\((\d+)\)(?!\d)"), lambda m: _repeating(m[1], m[2], m[3])),  # 0.(3)
    (re.compile(r"(?<![\w.])(\d*)\.(\d*?)(\d{1,6})(?:\3)+\.\.\.(?!\d)"), lambda m: _repeating(m[1], m[2], m[3])),  # 0.333...
    (re.compile(r"(^|[\s({\[=,^\-+*/<>])\.(?=\d)"), lambda m: f"{m[1]}0."),
    (re.compile(r"(?<=\d)\.(?=\s*(?:$|[,;)}\]=\\]))"), ""),  # "5." is 5
    (re.compile(r"(?<![\w.,}])0+(?=\d)(?![\d]*_)"), ""),  # 007; sympy refuses -05
    (re.compile(r"^\s*\+\s*(?=[\d\\.A-Za-z(])"), ""),
    (re.compile(r"(?<![\w)}\]|!])\s*-\s+(?=[\d\\.A-Za-z(])"), lambda m: " -" if m.start() else "-"),
)  # fmt: skip


def _repeating(whole: str, fixed: str, period: str) -> str:
    """A repeating decimal as a fraction, exactly."""
    top = int((whole or "0") + fixed + period) - int((whole or "0") + fixed)
    return f"\\frac{{{top}}}{{{'9' * len(period) + '0' * len(fixed)}}}"


def _numbers(text: str) -> str:
    for pattern, replacement in _NUMBERS:
        text = pattern.sub(replacement, text)
    return text


__all__ = ["CONSTANTS", "FUNCTIONS", "closing", "notation"]
