"""System: signals, then a chain of links, checked when it is constructed.

    signal : (Rollouts, Scores so far) -> Rewards or {name: Rewards}
    link   : (Scores, Rollouts) -> Scores                      (stateful: (Scores, Rollouts, state) -> (Scores, state))

Both are plain callables. What the System reads from them, all optional: `scope` ("row", "group", "batch"), `needs` (names of
what the rollouts or the engine must provide), `level` (signals: at which level their rewards stand), `plan` (links: levels
in -> levels out, the symbolic run that finds a wrong chain at construction), `centres` (links: after this, numbers are
advantages), `init_state` (links), `state_dict`/`load_state_dict`, `bind` and `update`/`update_at` (signals that learn).
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from guerdon.errors import CapabilityError, ChainError, ConfigError, ShapeError
from guerdon.labels import label, shown
from guerdon.parts import asked_of, check_chain, check_credited, check_given, check_segments, check_signals
from guerdon.rewards import Rewards, Scored, Scores, total_reward
from guerdon.rollouts import Rollouts
from guerdon.segment.placement import written_by_policy
from guerdon.spans import Spans

Scope = Literal["row", "group", "batch"]
UpdateAt = Literal["before_scoring", "after_scoring", "after_policy_step"]
TRAINER_STATE = (
    "trainer_state"  # a role that is no model: the state of the trainer, for reward functions written for one
)
SCOPES: tuple[Scope, ...] = ("row", "group", "batch")
Segmenter = Callable[[Rollouts], Spans]
Once = Callable[[Callable[[], Any]], Any]


@runtime_checkable
class Signal(Protocol):
    """Where a reward comes from. Reads rollouts (and earlier scores) and returns named rewards."""

    def __call__(self, rollouts: Rollouts, scores: Scores) -> Rewards | Mapping[str, Rewards] | Scored: ...


class Link(Protocol):
    """One step between raw scores and advantages."""

    def __call__(self, scores: Scores, rollouts: Rollouts) -> Scores: ...


@dataclass(frozen=True)
class Model:
    """A model by role: where it comes from and when it changes. Which model is "the reference" is stated, never assumed.

    Attributes:
        source: hub id, path or an object of the caller's.
        refresh: "frozen", "phase_start" (copied from the policy when a phase begins), "ema" (follows the policy, once before each
            training generation), "every:N" (copied from the policy before the generation of every N-th step), or "trained".
        rate: of "ema": the POLICY's weight in the average, in [0, 1], or a function (step from 1, planned steps or None) -> weight.
    """

    source: Any
    refresh: str = "frozen"
    rate: float | Callable[[int, int | None], float] = 0.01

    def __post_init__(self) -> None:
        kind, _, count = self.refresh.partition(":")
        if kind not in ("frozen", "phase_start", "ema", "every", "trained") or (kind == "every") != count.isdigit():
            raise ChainError(f"refresh={self.refresh!r}: use frozen, phase_start, ema, every:N or trained")
        if kind == "every" and int(count) < 1:
            raise ChainError(f"refresh={self.refresh!r}: N is at least 1")
        if not callable(self.rate) and not 0 <= self.rate <= 1:
            raise ChainError(f"rate={self.rate}: the policy's weight in the average is in [0, 1]")

    @property
    def moves(self) -> bool:
        """Whether an engine changes it during training, from the policy."""
        return self.refresh == "ema" or self.refresh.startswith("every:")

    def rate_at(self, step: int, total: int | None, since: int | None = None) -> float:
        """The policy's weight before the generation of optimiser step `step` (from 1): 1 = copied, 0 = left as it is.

        Args:
            step: of this generation.
            total: planned steps, or None.
            since: the step of the generation before (0 = there was none): generations may be several steps apart. None = `step` - 1.
        """
        if self.refresh.startswith("every:"):
            every, before = int(self.refresh.partition(":")[2]), step - 1 if since is None else since
            return float((step - 1) // every > (before - 1) // every)
        return float(self.rate(step, total) if callable(self.rate) else self.rate)


def scope_of(part: object) -> Scope:
    scope = getattr(part, "scope", "row")
    if scope not in SCOPES:
        raise ChainError(f"{part!r}: scope must be one of {SCOPES}, got {scope!r}")
    return scope


def needs_of(part: object) -> frozenset[str]:
    return frozenset(getattr(part, "needs", ()))


def _called(part: Any, once: Once | None, *arguments: Any) -> Any:
    """What a part answers; asked `once` where it wants that and the engine has a way."""
    if once is None or asked_of(part) == "everywhere":
        return part(*arguments)
    return once(lambda: part(*arguments))


def model_roles(part: object) -> frozenset[str]:
    """The models a part asks for, by role."""
    return frozenset(getattr(part, "roles", ())) - {TRAINER_STATE}


@dataclass
class System:
    """A composition of signals and links, with its defaults; callable on rollouts.

    Attributes:
        signals: by name; run in order, a later one may read the scores of earlier ones.
        chain: links, in the order the paper has them. An empty chain scores but cannot train.
        segments: segmenters by name; None = the rollouts bring this segmentation themselves (an environment's turns).
        objectives: auxiliary losses an engine adds, callables (models, batch) -> (loss, metrics).
        models: by role.
        name: shown in logs and reports.
        reward: what is reported as the optimised reward: a source as its signal gave it, or {source: weight}. None = what the
            chain makes advantages of: each source as it is just before it is centred, with the weights of its fusions.
    """

    signals: dict[str, Any]
    chain: Sequence[Any] = ()
    segments: dict[str, Segmenter | None] = field(default_factory=dict)
    objectives: Sequence[Any] = ()
    models: dict[str, Model] = field(default_factory=dict)
    name: str = "system"
    reward: str | Mapping[str, float] | None = None

    def __post_init__(self) -> None:
        check_signals(self.signals, self.name)
        check_chain(self.chain, self.name)
        check_segments(self.segments, self.name)
        self.models = {role: model if isinstance(model, Model) else Model(model) for role, model in self.models.items()}
        self.chain = list(self.chain)
        if self.chain and not any(getattr(link, "handles_failure", False) for link in self.chain):
            from guerdon.credit import OnFailure  # here: credit's links are written in terms of this module's types

            self.chain.insert(0, OnFailure("row"))
        self.chain = [
            link.settled(self.chain[i:]) if hasattr(link, "settled") else link for i, link in enumerate(self.chain, 1)
        ]
        self._state: dict[int, Any] = {
            i: link.init_state() for i, link in enumerate(self.chain) if hasattr(link, "init_state")
        }
        self.scope: Scope = max((scope_of(part) for part in self.parts()), key=SCOPES.index)
        self.needs: frozenset[str] = frozenset().union(*(needs_of(part) for part in self.parts()))
        self._plan()

    def parts(self) -> list[Any]:
        return [*self.signals.values(), *self.chain, *self.objectives]

    @property
    def relative(self) -> bool:
        """Whether the reward compares rollouts with one another (win rates, ranks, agreement), so that its mean says nothing."""
        paying = [s for s in self.signals.values() if not getattr(s, "diagnostic", False)]
        return any(getattr(part, "relative", False) for part in [*paying, *self.chain])

    def diagnostics(self) -> frozenset[str]:
        """The sources that are for the log only: no link sees them, and they are no part of the reward."""
        shown = {name for name, signal in self.signals.items() if getattr(signal, "diagnostic", False)}
        return frozenset(source for source in self.levels() if source in shown or source.partition(".")[0] in shown)

    # -- construction checks -------------------------------------------------------------------------------------------

    def levels(self) -> dict[str, str]:
        """The level of every source the signals give, by name; sub-rewards as `signal.sub`."""
        levels: dict[str, str] = {}
        for name, signal in self.signals.items():
            declared = getattr(signal, "level", "sequence")
            for key, level in (
                {name: declared}
                if isinstance(declared, str)
                else {f"{name}.{sub}": lvl for sub, lvl in declared.items()}
            ).items():
                if level not in ("sequence", "token") and level not in self.segments:
                    raise ChainError(
                        f"{self.name}: signal {key!r} scores {level!r} spans, but segments has {sorted(self.segments) or 'none'}; add segments={{{level!r}: ...}}"
                    )
                levels[key] = level
        return levels

    def _plan(self) -> None:
        """Run the chain on levels alone, so that a wrong name or order is an error here."""
        levels = self.levels()
        stated = {self.reward: 1.0} if isinstance(self.reward, str) else dict(self.reward or {})
        if unknown := sorted(set(stated) - set(levels)):
            raise ChainError(f"{self.name}: reward={self.reward!r} names {unknown}; the signals give {sorted(levels)}")
        self._stated_reward = stated
        levels = {name: level for name, level in levels.items() if name not in self.diagnostics()}
        for i, link in enumerate(self.chain, 1):  # numbered as `print(system)` numbers them
            if hasattr(link, "plan"):
                try:
                    levels = link.plan(dict(levels))
                except ChainError as error:
                    raise ChainError(f"{self.name}: link {i} {link!r}: {error}") from error
        if self.chain and [level for level in levels.values()].count("token") != 1:
            raise ChainError(
                f"{self.name}: the chain must end with exactly one token-level source (the advantages), it ends with {levels}; place with ToTokens(...) and join with Fuse(...)"
            )
        if self.chain and len(levels) > 1:
            left = sorted(name for name, level in levels.items() if level != "token")
            raise ChainError(
                f"{self.name}: the chain leaves {', '.join(map(repr, left))} over, so that nobody can say whether the policy is paid for it: join "
                f"it with Fuse(...), leave it out with Drop({', '.join(map(repr, left))}), or give the signal as signals.Diagnostic(...), for the log only"
            )

    def require(self, provided: frozenset[str] | set[str], engine: str, *, chain: bool = True) -> None:
        """Raise CapabilityError unless everything this system needs is in `provided`; `chain` False = for its signals alone."""
        needs = self.needs if chain else frozenset().union(*(needs_of(signal) for signal in self.signals.values()))
        missing = needs - frozenset(provided)
        if missing:
            raise CapabilityError(
                f"{self.name} needs {sorted(missing)}, which {engine} does not provide (it provides {sorted(provided) or 'nothing'})"
            )

    def reward_scope(self, *, chain: bool = True) -> Scope:
        """What must be seen at once to compute the optimised reward: the signals, and (`chain`) the links before centring.

        A group-normalised outcome reward is of scope "group" as a system, and its reward of scope "row".
        """
        links = list(self.chain) if chain else []
        before = next((i for i, link in enumerate(links) if getattr(link, "centres", False)), len(links))
        return max((scope_of(part) for part in [*self.signals.values(), *links[:before]]), key=SCOPES.index)

    # -- running -------------------------------------------------------------------------------------------------------

    def segmented(self, rollouts: Rollouts) -> Rollouts:
        """The rollouts with this system's segmentations cut.

        Raises:
            ChainError: what was given are no Rollouts.
        """
        if not isinstance(rollouts, Rollouts):
            raise ChainError(
                f"{self.name} scores Rollouts, got {type(rollouts).__name__}; texts become rollouts with "
                f"Rollouts.from_texts(prompts, completions, columns, group_ids=...)"
            )
        cut = {
            name: segmenter(rollouts).renamed(name).to(rollouts.device)
            for name, segmenter in self.segments.items()
            if segmenter is not None and name not in rollouts.spans
        }
        for name, segmenter in self.segments.items():
            if segmenter is None:
                rollouts.segment(name)  # raises, naming what is missing
        return rollouts.with_spans(**cut) if cut else rollouts

    def row_signals(self) -> list[str]:
        """The leading signals of row scope: an engine may run them on local rows before it gathers. Not those that are asked once."""
        names: list[str] = []
        for name, signal in self.signals.items():
            if scope_of(signal) != "row" or getattr(signal, "asked", None) == "once":
                break
            names.append(name)
        return names

    def stages(self) -> list[tuple[bool, list[str]]]:
        """The signals in order, in runs that are scored alike.

        (True, names): of row scope, so an engine may run them where the rows are, and gather. (False, names): they see the gathered
        batch, or are asked once.
        """
        runs: list[tuple[bool, list[str]]] = []
        for name, signal in self.signals.items():
            apart = scope_of(signal) == "row" and getattr(signal, "asked", None) != "once"
            if runs and runs[-1][0] == apart:
                runs[-1][1].append(name)
            else:
                runs.append((apart, [name]))
        return runs

    def score(
        self,
        rollouts: Rollouts,
        *,
        only: Sequence[str] | None = None,
        scores: Scores | None = None,
        once: Once | None = None,
    ) -> Scores:
        """Run the signals (all, or `only` these) on top of `scores`. Rollouts must be `segmented`.

        `once`: how an engine of several processes has a part asked on one of them, where all hold the same rollouts.
        """
        scores = scores or Scores.empty(rollouts)
        levels = self.levels() if self.chain else {}  # without a chain nothing was planned with them
        for name in self.signals if only is None else only:
            where = f"{self.name}: signal {name!r}"
            try:
                given = _called(self.signals[name], once, rollouts, scores)
            except (ShapeError, ConfigError) as error:
                raise type(error)(f"{where}: {error}") from error
            if isinstance(given, Scored):
                logged, texts = {**scores.logged, **given.metrics}, {**scores.texts, **given.texts}
                scores, given = replace(scores, logged=logged, texts=texts), given.rewards
            check_given(given, where)
            named = (
                {name: given}
                if isinstance(given, Rewards)
                else {f"{name}.{sub}": rewards for sub, rewards in given.items()}
            )
            for key, rewards in named.items():
                if len(rewards) != len(rollouts):
                    raise ChainError(
                        f"{self.name}: signal {key!r} returned {len(rewards)} rows for {len(rollouts)} rollouts"
                    )
                if rewards.level != levels.get(key, rewards.level):
                    raise ChainError(
                        f"{self.name}: signal {key!r} returned {rewards.level!r} rewards, and the chain expects {levels[key]!r}: give the signal the attribute level = {rewards.level!r}"
                    )
                # Learned signals answer from where their model is; rollouts and the chain live in one place.
                rewards = _explain(_of_the_policy(rewards.to(rollouts.device), rollouts), key)
                scores = replace(scores, sources={**scores.sources, key: rewards}, raw={**scores.raw, key: rewards})
        return scores

    def credit(self, scores: Scores, rollouts: Rollouts, *, once: Once | None = None) -> Scores:
        """Run the chain. Pure: the states it computes are in the result, and `commit` makes them current. `once`: see `score`."""
        state: dict[int, Any] = {}
        hidden = self.diagnostics()
        shown = {name: rewards for name, rewards in scores.sources.items() if name not in hidden}
        scores = replace(scores, sources=shown).to(rollouts.device)
        for i, link in enumerate(self.chain):
            stateful = i in self._state
            given = _called(link, once, scores, rollouts, *([self._state[i]] if stateful else []))
            check_credited(given, stateful, f"{self.name}: link {i + 1} {link!r}")
            scores, state = (given[0], {**state, i: given[1]}) if stateful else (given, state)
            scores = scores.to(rollouts.device)
        scores = replace(scores, reward=self._row_reward(scores), state=state)
        if self.chain:
            _refuse_non_finite(scores, self.name)
        return scores

    def _row_reward(self, scores: Scores) -> Tensor:
        """[B]: the optimised reward, stated or what the live sources paid; NaN where it could not be scored."""
        if self._stated_reward:
            return total_reward([scores.raw[name] for name in self._stated_reward], list(self._stated_reward.values()))
        if scores.reward is not None:
            return scores.reward
        return total_reward(list(scores.sources.values())) if scores.sources else torch.full((len(scores),), torch.nan)

    def __call__(self, rollouts: Rollouts) -> Scores:
        """Segment, score, credit. In training (rollouts.clock.training) an engine then calls `commit` once."""
        rollouts = self.segmented(rollouts)
        self._warn_about_groups(rollouts)
        return self.credit(self.score(rollouts), rollouts)

    def _warn_about_groups(self, rollouts: Rollouts) -> None:
        """Say so where a chain that compares the rollouts of a group gets texts that are all of different prompts."""
        comparing = [link for link in self.chain if scope_of(link) == "group"]
        if (
            comparing
            and not rollouts.has_tokens
            and len(rollouts) > 1
            and len(rollouts.groups.unique()) == len(rollouts)
        ):
            warnings.warn(
                f"{self.name}: each of the {len(rollouts)} rollouts is a group of its own, and {comparing[0]!r} compares within groups: what it "
                "gives says nothing. Repeat a group's prompt, or pass Rollouts.from_texts(..., group_ids=[...])",
                stacklevel=3,
            )

    def commit(self, scores: Scores) -> None:
        """Make the states computed with `scores` current: once per training generation."""
        self._state.update(scores.state)

    # -- models, learning, checkpoints -----------------------------------------------------------------------------------

    def bind(self, role: str, instrument: Any) -> None:
        """Hand a model to every part that asks for the role."""
        for part in self.parts():
            if role in getattr(part, "roles", ()):
                part.bind(role, instrument)

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> System:
        """Place every part that has models of its own and declares `to(device, dtype)`: an engine puts them where the policy is.

        What is not loaded yet goes there when it is; a device or dtype the caller gave a part stays. dtype None = as they are.
        """
        for part in self.parts():
            if callable(getattr(part, "to", None)):
                part.to(torch.device(device), dtype)
        return self

    def update(self, rollouts: Rollouts, scores: Scores, at: UpdateAt) -> dict[str, float]:
        """Let the parts that learn online do so; returns their metrics, prefixed with their names."""
        metrics: dict[str, float] = {}
        for name, signal in self.signals.items():
            if getattr(signal, "update_at", None) == at:
                metrics |= {f"{name}/{key}": value for key, value in signal.update(rollouts, scores).items()}
        return metrics

    def state_dict(self) -> dict[str, Any]:
        signals = {name: signal.state_dict() for name, signal in self.signals.items() if hasattr(signal, "state_dict")}
        return {"links": dict(self._state), "signals": signals, "chain": self._labels()}

    def _labels(self) -> list[str]:
        """How a checkpoint recognises the chain: each link's type, version and options that are not the default."""
        return [label(link) for link in self.chain]

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if list(state["chain"]) != self._labels():
            raise ChainError(
                f"{self.name}: the checkpoint was made by another chain:\n  then: {state['chain']}\n  now:  {self._labels()}"
            )
        self._state.update(state["links"])
        for name, inner in state["signals"].items():
            self.signals[name].load_state_dict(inner)

    def __str__(self) -> str:
        lines = [f"{self.name}  (scope {self.scope}; needs {', '.join(sorted(self.needs)) or 'nothing'})"]
        levels = self.levels()
        for name, segmenter in self.segments.items():
            lines.append(f"  cut     {name}: {shown(segmenter) if segmenter is not None else 'from the rollouts'}")
        for name, signal in self.signals.items():
            level = ", ".join(
                lvl if key == name else f"{key.removeprefix(name)}: {lvl}"
                for key, lvl in levels.items()
                if key == name or key.startswith(name + ".")
            )
            lines.append(f"  signal  {name}: {shown(signal)} -> {level}")
        lines += [f"  link    {i}. {shown(link)}" for i, link in enumerate(self.chain, 1)]
        lines += [f"  loss    + {shown(objective)}" for objective in self.objectives]
        for role, model in self.models.items():
            how = f"{model.refresh}, rate {model.rate}" if model.refresh == "ema" else model.refresh
            lines.append(f"  model   {role}: {model.source} ({how})")
        return "\n".join(lines)


def _of_the_policy(rewards: Rewards, rollouts: Rollouts) -> Rewards:
    """Without what stands on words the policy did not write: steps of a tool do not apply, and its tokens are worth 0."""
    assert rollouts.policy_mask is not None
    foreign = rollouts.mask & ~rollouts.policy_mask
    if rewards.level == "sequence" or not bool(foreign.any()):
        return rewards
    if rewards.level == "token" and rewards.values.shape == foreign.shape:
        cells = foreign.to(rewards.values.device)
        return rewards.with_values(torch.where(cells, torch.zeros_like(rewards.values), rewards.values))
    mask = written_by_policy(rewards.spans, rollouts)
    return replace(rewards, spans=replace(rewards.spans, mask=rewards.mask & mask.to(rewards.mask.device)))


def _explain(rewards: Rewards, name: str) -> Rewards:
    """A NaN without a reason gets one that names the signal at fault."""
    unexplained = [cell for cell in map(tuple, rewards.failed.nonzero().tolist()) if cell not in rewards.reasons]
    if not unexplained:
        return rewards
    return replace(
        rewards, reasons={**rewards.reasons, **{cell: f"{name} returned NaN without a reason" for cell in unexplained}}
    )  # type: ignore[misc]


def _refuse_non_finite(scores: Scores, name: str) -> None:
    bad = ~torch.isfinite(scores.advantages)
    if bool(bad.any()):
        row, token = bad.nonzero()[0].tolist()
        raise ChainError(
            f"{name}: the advantage of row {row}, token {token} is {scores.advantages[row, token].item()}; a link let a failed score through (put OnFailure before links that do arithmetic)"
        )
