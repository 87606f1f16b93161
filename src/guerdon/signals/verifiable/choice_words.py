"""How "the answer is B" is said: the words for "answer", for "is", and what may stand between them and the letter, in many languages.

All in Unicode's form NFKC and, but for `NOUN`, in lower case.
"""

from __future__ import annotations

import re
import unicodedata


def _normal(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _words(*lines: str) -> frozenset[str]:
    return frozenset(word for line in lines for word in _normal(line).split())


# The word for "answer" in the languages models answer in; those without blanks between words need no border.
NOUN = re.compile(
    _normal(
        r"(?<![^\W_\u2e80-\uffff])(?:answers?|ans\b\.?|choice|option|solution|selection|pick|response|conclusion|verdict|result|final(?=:| answer)"
        r"|(?:correct|right|best)(?=:| one| option| choice| letter)|letter(?=:| is)|antwort|richtig|lösung|réponse|respuesta|solución|opción|risposta|soluzione|resposta|antwoord"
        r"|odpowiedź|odpověď|odgovor|ответ|вариант|відповідь|отговор|cevap|yanıt|svaret|svar|vastaus|válasz|răspunsul|răspuns|απάντηση|jawabannya"
        r"|jawaban|đáp án|câu trả lời|उत्तर|উত্তর|الإجابة|الجواب|جواب|پاسخ|תשובה|התשובה)(?![^\W\u2e80-\uffff])"
        r"|答案|正确选项|正確選項|选项|選項|答え|正解|正答|回答|解答|정답|답|คำตอบ"
    ),
    re.I,
)
# Words that may stand between it and the letter: those that say "is", and those that do not.
COPULAS = _words(
    "is are was be being becomes remains equals seems appears looks to as ist lautet wäre est sera serait es sería è sarebbe é seria to jest je",
    "je это є е är er är on este είναι adalah ialah yaitu là है হল হলো هي هو است היא הוא คือ 是 为 為 选 選 は が 은 는 이 가",
)
BRIDGES = _words(
    "should must would will can could might may has have like turn turns out only most least then therefore thus hence clearly likely probably",
    "definitely indeed obviously actually simply certainly surely still really undoubtedly of course here in fact now again the this that these question problem task",
    "item for of my our given by first second third fourth fifth last one and so choice option letter answer statement alternative candidate",
    "number key correct right best final finale ought richtige richtig bonne exacte correcte correcta correta corretta esatta doğru đúng helyes die der",
    "das buchstabe la le lettre letra lettera il el het de η το ข้อ la lựa chọn الصحيحة الصحيح הנכונה correctă prawidłowa poprawna верный",
    "правильный вариант варіант corect corectă yang benar tepat 应 該 该 的 项 項 第 个 個 も",
)
FOREIGN = _words(
    "ans. antwort respuesta risposta soluzione resposta antwoord odgovor cevap svaret svar vastaus jawaban jawabannya"
)

__all__ = ["BRIDGES", "COPULAS", "FOREIGN", "NOUN"]
