r"""Multiple choice: which letter a completion chooses, in markdown, LaTeX, JSON and some thirty languages.

A letter is chosen, in this order:

1. in the last `\boxed{}` or `<answer>` tag, whichever is later; one that names no letter hands on to what follows it;
2. by the last statement: "the answer is B", "Antwort: B", "(B) is correct", "I choose B";
3. alone on the last line, then on the first; or at the head of the whole answer ("B) Paris");
4. as "option B" in a last line that names no other.

A capital "A" (or "I") is a letter after "answer is" and a word before a noun ("Answer: A dog"). Small letters count where nothing else
can be meant: alone, in brackets, or before a full stop. Two letters at once ("A or B") choose none; nor do questions, negations,
conditions ("if the answer were A"). The letter of the LAST statement counts, even where it is none of the options.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import NamedTuple

from guerdon.signals.verifiable.choice_words import BRIDGES, COPULAS, FOREIGN, NOUN
from guerdon.signals.verifiable.extraction import last_boxed
from guerdon.signals.verifiable.verdict import Verdict, instrument_failure, shown

_TOKEN = re.compile(r"[A-Za-z\u00c0-\u024f\u1e00-\u1eff]+|[\u0370-\u1dff]+|[\u2e80-\uffff]|\d+|\S")
_MARKS = frozenset(":=-\u2013\u2014\u2192\u21d2>")
_COUNTED = frozenset({"question", "problem", "number", "task", "item", "q"})
_OPENERS = frozenset("([{<\"'\u201c\u2018\u300c\u300e\u3010")
_BORDER = (
    r"(?![A-Za-z0-9\u00c0-\u04ff_]|['\u2019](?!d[iıuü]r|t[iı]r)\w|[-\u2010\u2011\u2013]\w|[+#%^*\\]| ?=|\.[A-Za-z]\.)"
)
_LETTER = rf"[(\[{{<\"'\u201c]{{0,6}}(?P<letter>[A-Za-z0-9]){_BORDER}"
_AFTER_LETTER = re.compile(_BORDER)
_RIGHT = re.compile(
    rf"(?<![\w'\u2019-])(?:(?:option|choice|answer|statement) )?{_LETTER}[)\]}}>\"'\u201d.:]*"
    r" (?:is|must be|has to be|seems to be|seems|appears to be|appears|should be|ist|est|es|è|é|это)"
    r" (?:indeed |clearly |therefore |thus |definitely |obviously |then |actually |most likely |probably )?"
    r"(?:the |my |our |a |die |la |el |der |o )?(?:only |most |best |single |final |one )?"
    r"(?:correct|right|true|answer|accurate|appropriate|best|valid|richtig|richtige|correcta?|juste|bonne|giusta|corretta|correta)\b"
    r"(?! (?:if|only|when|unless|but|about|that)\b)",
    re.I,
)
_CHOSEN = re.compile(
    r"\b(?:choos(?:e|ing)|chose|pick(?:ing)?|select(?:ing)?|go(?:ing)? with|went with|opt(?:ing)? for|settl(?:e|ing) on|vote for|wähle"
    r"|choisis|elijo|scelgo|escolho)(?: (?:the|option|choice|answer|letter|die|la|réponse|opción|antwort)){0,3}[: ]+"
    rf"{_LETTER}",
    re.I,
)
_CHOSEN_CJK = re.compile(rf"(?:故选|应选|選擇|选择|选|選ぶのは|選)[: ]?{_LETTER}")
_CONCLUDED = re.compile(
    r"(?:\b(?:so|thus|hence|therefore|consequently|definitely|clearly|probably|certainly|obviously|(?:it|that) (?:must|should|has to|will|would) be"
    r"|it'?s|it is|that'?s|that is|(?:i|we)(?:'d| would)? say|es la|c'est(?: la)?|è la|é a|das ist)|=>|->|[\u2192\u21d2\u2234])"
    r"[,:]? (?:it is |it's |it must be |definitely |clearly |probably |likely |certainly |option |choice )?"
    rf"{_LETTER}[)\]}}>\"'\u201d]*[.!]? ?(?=\n|$)",
    re.I,
)
_LEFT = re.compile(
    rf"\bonly (?:option |choice |answer )?{_LETTER}[)\]]* (?:works|fits|satisfies|matches|holds|remains|is left)\b",
    re.I,
)
_TAKEN = re.compile(
    rf"\b(?:get|have|find|take|mark|give|choose|pick|select) {_LETTER}[)\]]* (?:as|for) (?:the|my|our) [\w ]{{0,16}}?(?:answer|choice|option)\b",
    re.I,
)
_RIGHT_CJK = re.compile(
    rf"(?<![A-Za-z0-9]){_LETTER}[)\]]?(?: ?选项| ?選項|번)?(?:是|为|為|が|は|가|는|이)? ?(?:最?(?:正确|正確)|对的|對的|正解|答案|정답|맞|正しい)"
)
_IN_BRACKETS = re.compile(r"\banswer is [^.\n()]{1,80}\((?P<letter>[A-Z])\)", re.I)
_NOT_BUT = re.compile(
    r"\b(?:answer|choice|option) (?:is not|isn't|is no longer) [^.\n]{1,20}?[,;]? (?:but|rather|it is|it's)(?: rather| instead)?(?: option)? "
    rf"{_LETTER}",
    re.I,
)
_PATTERNS = (_RIGHT, _LEFT, _RIGHT_CJK, _TAKEN, _CHOSEN, _CHOSEN_CJK, _CONCLUDED, _IN_BRACKETS, _NOT_BUT)
_OPTION = re.compile(rf"\b(?:option|choice|answer|letter) {_LETTER}", re.I)
_UNSURE = re.compile(  # before a statement: it is not made
    r"\b(?:if|suppose|assume|assuming|whether|unless|why|imagine|wrong|incorrect|false|other|bad|tempting|not|never|no|nor|neither)"
    r"(?: that)?(?: the)?(?: (?:correct|final|right|best))?[ ,]$|n't $|[不没沒别別非勿]$",
    re.I,
)
_NONE_OF = re.compile(r"\b(?:none|nobody|no one|neither)\b[^.\n]*$", re.I)
_CONNECTIVES = (
    r"because|since|as|and|or|but|due|for|with|given|which|so|based|according|where|when|if|by|from|not|is|was|rather|instead|weil|da|denn"
    r"|parce|car|porque|ya|perché|pois|here|in|on|at|after|only|alone|though|although|while|per|via|thanks|that|it|this|the|then"
)
_HEAD = re.compile(  # "B, because ...", "B (Paris)"
    r"(?P<letter>[A-Za-z])(?: ?[,;\u2013\u2014]| -| \(| (?:because|since|as|due|for|given|weil|da|denn|parce|car|porque|ya que|perché|pois)\b)"
)
_DENIED = re.compile(  # after a letter: it is not the answer
    r"[)\]\"']* ?(?:(?:is|was|ist|est|es) (?:not|incorrect|wrong|false|falsch|faux)|isn't|[가이는은]? ?아[니닙]|では|じゃ|不|错|錯)"
)
_SEPARATOR = (
    r"(?:[,;/&+、]|\b(?:or|nor|and|und|oder|ou|et|y|o|e|и|или|та|або|ve|veya|atau|dan|hoặc|lub|albo|i|eller|och|og|tai|vagy|sau)\b"
    r"|或|和|与|または|と|か|또는|혹은|หรือ|\(or\b|(?<=[)\]])(?= ?[(\[]))"
)
_SECOND = re.compile(
    rf"[)\]}}\"'\u201d]{{0,6}} ?{_SEPARATOR}(?: ?(?:or|and))? ?(?:also |maybe |possibly |perhaps |option |both )?[(\[\"']*(?P<second>[A-Za-z0-9])(?![\w'\u2019-])"
    rf"(?P<more>(?:[)\]\"']* ?{_SEPARATOR} ?[(\[]*[A-Z](?!\w))*)(?P<rest>[)\]\"']*(?: \w+)?)",
    re.I,
)
_VERB = re.compile(
    r"[)\]\"']* (?:is|are|was|were|does|do|would|will|can|cannot|could|has|have|fails?|says?|gives?|isn|aren|don|being)\b"
)
_WRAPPER = re.compile(
    r"\\(?:text|textbf|textit|textrm|texttt|textsf|textsc|textnormal|mathrm|mathbf|mathit|mathsf|mathtt|mathbb|mathcal|operatorname|emph|underline"
    r"|bold|boldsymbol|mbox|hbox|fbox|large|Large)\*? ?\{([^{}]*)\}|\{ ?\\(?:bf|rm|it|sf|tt|bfseries) ?([^{}]*)\}"
)
_DRESS = re.compile(
    r"\\[()\[\]]|[$*`]|(?<![A-Za-z0-9])_+|_+(?![A-Za-z0-9])|</?(?:b|i|u|em|strong|span|p|mark|code|div|font|h\d)\b[^<>]*>|\\(?:bf|rm|it)\b|~~",
    re.I,
)
_BOX_BEFORE = re.compile(r"\\(?:boxed|fbox) ?\{([^{}]*)\}[ $]*(?:or|and|,|/|&|;|\bor\b)[ $]*$", re.I)
_BULLET = re.compile(r"^(?:[>#\u2022-]+ )+")
_LATEX_BLANK = re.compile(r"\\[ ,;:!]|\\q?quad\b|~|&nbsp;|\\newline\b|\\\\")
_LABEL = r"(?:[(\[{<] ?(?P<in>[A-Za-z0-9]) ?[)\]}>][.:]?|(?P<label>[A-Za-z0-9])[)\].:\uff09])"
_LABELLED = re.compile(rf"{_LABEL} ?(?:\S.*)?", re.S)
_LISTED = re.compile(rf"^ ?(?:[-\u2022] )?{_LABEL} ?\S", re.M)
_ALONE = re.compile(r"[(\[{<\"'\u201c\u300c\u3010 ]*(?P<letter>[A-Za-z0-9])[)\]}>\"'\u201d\u300d\u3011.:,;!\u3002 ]*")


def choice_letter(text: str, letters: str = "ABCDE") -> str | None:
    """The chosen letter of a multiple-choice answer, upper case; None where none, several, or one outside `letters` is chosen.

    Args:
        text: the answer part of a completion.
        letters: of the options; digits are possible.
    """
    text = unicodedata.normalize("NFKC", text)
    marked = _last_marked(text)
    if marked is not None:
        content, before, after = marked
        named = _named(_undressed(content), letters)
        if named is None:
            named = _in_prose(_undressed(after), letters)
        found = _last_stated(_undressed(before), letters) if named is None else named
    else:
        found = _in_prose(_undressed(text), letters)
    return found.upper() if found and found.upper() in letters.upper() else None


def multiple_choice(completion: str, reference: str | int, *, letters: str = "ABCDE") -> Verdict:
    """1.0 if `choice_letter` finds the reference's letter; no letter found is 0.0; a reference outside `letters` is NaN.

    Args:
        completion: the answer part.
        reference: a letter ("B", "(B)", "B) Paris", "The answer is B") or a 0-based index.
        letters: of the options.
    """
    if isinstance(reference, int):
        expected = letters[reference].upper() if 0 <= reference < len(letters) else None
    else:
        bare = _undressed(unicodedata.normalize("NFKC", reference))
        named = _named(bare, letters)
        expected = named.upper() if named and named.upper() in letters.upper() else None
    if expected is None:
        return instrument_failure(f"the reference {shown(reference)} is none of the letters {letters}")
    given = choice_letter(completion, letters)
    if given is None:
        return Verdict(0.0, "no choice letter found")
    return Verdict(1.0) if given == expected else Verdict(0.0, f"chose {given}, not {expected}")


def _last_marked(text: str) -> tuple[str, str, str] | None:
    """(content, text before, text after) of the last box or answer tag; None where there is none."""
    box, content = max(text.rfind("\\boxed"), text.rfind("\\fbox")), last_boxed(text)
    end = text.lower().rfind("</answer>")
    start = text.lower().rfind("<answer>", 0, end) if end >= 0 else -1
    if start > box:
        return text[start + len("<answer>") : end], text[:start], text[end + len("</answer>") :]
    if content is None:
        return None
    other = _BOX_BEFORE.search(text[max(0, box - 200) : box])
    if other and other[1].strip() != content.strip():
        content = "?"  # one of several boxes: no single choice
    return content, text[:box], text[text.find(content, box) + len(content) + 1 :]


def _undressed(text: str) -> str:
    """The text without LaTeX and markdown around letters, white space runs to one blank (or one line break)."""
    text = _LATEX_BLANK.sub(" ", text)
    for _ in range(4):
        plain = _WRAPPER.sub(lambda found: found[1] if found[1] is not None else found[2], text)
        if plain == text:
            break
        text = plain
    text = _DRESS.sub("", text)
    return "\n".join(line for line in (_BULLET.sub("", " ".join(line.split())) for line in text.splitlines()) if line)


def _named(content: str, letters: str) -> str | None:
    """The letter of a text that is nothing but an answer."""
    content = content.strip()
    found = _ALONE.fullmatch(content)
    if found:
        return found["letter"]
    label = _LABELLED.fullmatch(content)
    if label and not _listing(content):
        letter = label["in"] or label["label"]
        if not _several(content, label.end("in") if label["in"] else label.end("label"), letter):
            return letter
    stated = _last_stated(content, letters)
    if stated:
        return stated
    head = _HEAD.match(content)
    if head and head["letter"].isupper() and not _several(content, head.end("letter"), head["letter"]):
        return head["letter"]
    option = re.match(rf"{_OPTION.pattern}(?=[)\].:,;(]|$| -| \()", content, re.I)
    return option["letter"] if option and not _several(content, option.end("letter"), option["letter"]) else None


def _in_prose(text: str, letters: str) -> str | None:
    """The letter chosen in a text without a box or tag."""
    if not text:
        return None
    lines = text.split("\n")
    last, first = _ALONE.fullmatch(lines[-1]), _ALONE.fullmatch(lines[0])
    if last and (last["letter"].isupper() or last["letter"].isdigit() or len(lines) == 1 or lines[-1][0] in "(["):
        return last["letter"]
    stated = _last_stated(text, letters)
    if stated:
        return stated
    if first and first["letter"].upper() in letters.upper():
        return first["letter"]
    named = _named(text, letters) or (None if last or _listing(text) else _named(lines[-1], letters))
    if named:
        return named
    options = {found["letter"].upper() for found in _OPTION.finditer(lines[-1])}
    doubted = re.search(r"\b(?:not|wrong|incorrect|false)\b|n't\b|\?", lines[-1])
    return options.pop() if len(options) == 1 and not doubted else None


def _listing(text: str) -> bool:
    """Whether lines begin with the labels of several options: a list of them, not a choice."""
    return len({(found["in"] or found["label"]).upper() for found in _LISTED.finditer(text)}) > 1


class _Statement(NamedTuple):
    """A letter that a text says is the answer.

    start: where the statement begins; at: where the letter stands; opened: in brackets or quotes; colon: a mark and no "is" came last.
    """

    start: int
    at: int
    opened: bool
    colon: bool = False


def _last_stated(text: str, letters: str) -> str | None:
    """The letter of the last statement; "?" (no option) where that names several, None where there is no statement."""
    made = [one for one in _statements(text, letters) if _is_made(text, one)]
    if not made:
        return None
    last = max(made, key=lambda one: one.at)
    return "?" if _several(text, last.at + 1, text[last.at]) else text[last.at]


def _statements(text: str, letters: str) -> Iterator[_Statement]:
    for noun in NOUN.finditer(text):
        found = _after_noun(text, noun, letters)
        if found is not None:
            yield found
    for pattern in _PATTERNS:
        for match in pattern.finditer(text):
            at = match.start("letter")
            if not text[at].isdigit() or text[at] in letters:
                yield _Statement(match.start(), at, text[at - 1 : at] in _OPENERS)


def _after_noun(text: str, noun: re.Match[str], letters: str) -> _Statement | None:
    """The letter after "the answer": over words that bridge, up to a letter that stands alone."""
    said = not noun[0].isascii() or noun[0].lower() in FOREIGN  # other languages do without "is"
    colon = opened = False
    before = ""
    for count, token in enumerate(_TOKEN.finditer(text, noun.end())):
        word = token[0]
        alone = len(word) == 1 and word.isascii() and word.isalnum() and not _is_counted(word, before, letters)
        alone = alone and not (word in "aoey" and re.match(r" \w\w|['\u2019]", text[token.end() :][:3]))  # articles
        if alone and _AFTER_LETTER.match(text, token.end()):
            return _Statement(noun.start(), token.start(), opened, colon) if said or opened else None
        lower = word.lower()
        if count > 9 or not (
            lower in "aoey"
            or lower in COPULAS
            or lower in BRIDGES
            or word in _MARKS
            or word in _OPENERS
            or word in ",.\u201d"
            or (word.isdigit() and before in _COUNTED)
        ):
            return None
        before, opened = lower, word in _OPENERS
        if lower in COPULAS or word in _MARKS:
            said, colon = True, word in _MARKS
    return None


def _is_counted(word: str, before: str, letters: str) -> bool:
    """Whether a digit is no option: none are digits, or it says which question."""
    return word.isdigit() and (word not in letters or before in _COUNTED)


def _is_made(text: str, stated: _Statement) -> bool:
    """Whether a statement is made: no question, condition or negation, and its letter is no word."""
    letter, after = text[stated.at], text[stated.at + 1 : stated.at + 64]
    before = text[max(0, stated.start - 64) : stated.start]
    if _UNSURE.search(before) or _NONE_OF.search(before) or re.match(r"[)\]\"'\u201d]*\?", after):
        return False
    if _DENIED.match(after) or re.match(r"[)\]]*[ ,]+(?:if|unless|when)\b", after):
        return False
    if letter in "bcdefgh" and re.match(r" is (?:the )?(?:correct|right|answer)\b", after):  # "a" and "i" are words
        return True
    if letter.islower():
        return stated.opened or (bool(re.match(r"[.,;:!)\]]|\n|$", after)) and not re.match(r"\. ?[a-z]", after))
    if letter in "AI" and not stated.opened and re.match(r" [^\W\d_]", after):
        return bool(re.match(rf" (?:{_CONNECTIVES})\b", after, re.I)) or (letter == "A" and not stated.colon)
    return True


def _several(text: str, end: int, letter: str) -> bool:
    """Whether a second letter follows at once: "A or B"; not "A, and B is wrong"."""
    second = _SECOND.match(text, end)
    if not second or second["second"].upper() == letter.upper() or second["second"].isdigit() != letter.isdigit():
        return False
    if letter.isupper() and second["second"].islower():
        return False
    if _VERB.match(text, second.end("more")):
        return False
    return not (second["second"] in "AI" and re.match(r" [a-z]", text[second.end("second") :]) and not second["more"])


__all__ = ["choice_letter", "multiple_choice"]
