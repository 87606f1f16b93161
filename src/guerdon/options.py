"""What an option may be: one check for numbers, so that every part refuses NaN, infinity and text in the same words, and one for words.

The words a part takes stand in its signature already, as `Literal`. `checked` reads them there, so that a misspelt word is refused by the
part it was given to and never becomes another setting: `GroupNorm(std="populaton")` is no population std, and `std=False` no "off".
"""

from __future__ import annotations

import functools
import inspect
import math
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeVar, Union, get_args, get_origin

from guerdon.errors import ConfigError, nearest

Part = TypeVar("Part", bound=Callable[..., Any])


class Words(NamedTuple):
    """The words an option takes, and the types beside them (a number, a function; `str` among them means any text)."""

    allowed: tuple[Any, ...]
    others: tuple[Any, ...]


def checked(part: Part) -> Part:
    """Decorator: a function or class that refuses what its `Literal` options do not name. For classes, outside `@dataclass`.

    Raises, when the part is called:
        ConfigError: the option, the value, the words there are.
    """
    if inspect.isclass(part):
        part.__init__ = _guarded(part.__init__, part)  # type: ignore[misc, method-assign]
        return part
    return _guarded(part, part)  # type: ignore[return-value]


def _guarded(function: Callable[..., Any], part: Any) -> Callable[..., Any]:
    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        check_words(part, args, kwargs, bound=function)
        return function(*args, **kwargs)

    return guarded


def check_words(part: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], *, bound: Callable[..., Any]) -> None:
    """Raise ConfigError unless every `Literal` option of `part` that is given holds one of its words.

    Args:
        part: the function or class the options belong to.
        args, kwargs: of the call of `bound`, its `__init__` for a class.
    """
    words = words_of(part)
    if not words:
        return
    try:
        given = _signature(bound).bind_partial(*args, **kwargs).arguments
    except TypeError:
        return  # the call itself says what is wrong with it
    for name in words.keys() & given.keys():
        require_word(name, given[name], words[name])


def check_fields(instance: Any) -> None:
    """Raise ConfigError unless every attribute of an instance whose annotation is a `Literal` holds one of its words."""
    kind: Any = type(instance)
    for name, words in words_of(kind).items():
        if hasattr(instance, name):
            require_word(name, getattr(instance, name), words)


def fields_checked(post_init: Callable[..., None]) -> Callable[..., None]:
    """A `__post_init__` before which the fields are checked."""

    @functools.wraps(post_init)
    def guarded(self: Any, *args: Any) -> None:
        check_fields(self)
        post_init(self, *args)

    return guarded


def require_word(name: str, value: Any, words: Words) -> None:
    """Raise ConfigError unless `value` is one of the words, or of a type beside them."""
    if any(type(value) is type(word) and value == word for word in words.allowed):
        return
    if words.others and not isinstance(value, str):
        return
    if any(other in (str, Any) for other in words.others):
        return
    shown = [repr(word) for word in words.allowed]
    known = f"{', '.join(shown[:-1])} or {shown[-1]}" if len(shown) > 1 else shown[0]
    near = nearest(value, [word for word in words.allowed if isinstance(word, str)]) if isinstance(value, str) else ""
    raise ConfigError(f"{name}={value!r}: use {known}{' or another type' if words.others else ''}{near}")


@functools.cache
def words_of(part: Any) -> dict[str, Words]:
    """The `Literal` options of a function or class, by name."""
    if inspect.isclass(part):
        options: dict[str, Words] = {}
        for base in reversed(part.__mro__):
            options |= _words_in(vars(base).get("__annotations__", {}), base)
        constructor = part.__init__
        options |= _words_in(getattr(constructor, "__annotations__", {}), inspect.unwrap(constructor))
        return options
    return _words_in(getattr(part, "__annotations__", {}), inspect.unwrap(part))


def _words_in(annotations: Mapping[str, Any], owner: Any) -> dict[str, Words]:
    module = sys.modules.get(getattr(owner, "__module__", ""), None)
    found = {}
    for name, annotation in annotations.items():
        if isinstance(annotation, str):
            try:
                annotation = eval(annotation, dict(vars(module)) if module else {})
            except Exception:  # imported for type checkers only, or a name of the class itself: no words to be had
                continue
        words = _split(annotation)
        if any(word is not None for word in words.allowed) and name != "return":
            found[name] = words
    return found


def _split(annotation: Any) -> Words:
    """The words of an annotation, and the other members of its union."""
    if get_origin(annotation) is Literal:
        return Words(get_args(annotation), ())
    if annotation is None or annotation is type(None):
        return Words((None,), ())
    if get_origin(annotation) in (Union, types.UnionType):
        parts = [_split(member) for member in get_args(annotation)]
        return Words(tuple(w for p in parts for w in p.allowed), tuple(o for p in parts for o in p.others))
    return Words((), (annotation,))


_signature = functools.cache(inspect.signature)


def require_range(low: float = -math.inf, high: float = math.inf, *, above: bool = False, **options: Any) -> None:
    """Refuse options that are no finite number in [low, high]; `None` is another way to say "off" and passes.

    Args:
        low, high: inclusive.
        above: `low` itself is refused.
        options: by name, as the caller spells them.

    Raises:
        ConfigError: with the name, the value and the range.
    """
    for name, value in options.items():
        if value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not low <= value <= high or (above and value == low):
            raise ConfigError(f"{name}={value!r}: {_range(low, high, above)}")


def _range(low: float, high: float, above: bool) -> str:
    if high == math.inf:
        return f"a number {'above' if above else 'of at least'} {low:g}" if low > -math.inf else "a finite number"
    return f"a number in {'(' if above else '['}{low:g}, {high:g}]"
