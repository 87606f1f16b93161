// The rollout browser: one prompt, two systems side by side, tokens coloured by advantage.
(function () {
  const host = document.getElementById("browser");
  const rollouts = DATA.rollouts;
  if (!rollouts.length) {
    host.append(el("p", { class: "empty" }, "No rollouts were logged, so there is nothing to browse."));
    document.documentElement.dataset.ready = "1";
    return;
  }
  const runName = (i) => `${DATA.runs[i].system}, seed ${DATA.runs[i].seed}`;
  const present = [...new Set(rollouts.map((r) => r.run))];
  // Held-out prompts first, since they return at every step; but not where no credit was given there.
  const credited = (split) => rollouts.some((r) => r.split === split && r.adv.some((a) => a !== null && a !== 0));
  const splits = [...new Set(rollouts.map((r) => r.split))].sort((a, b) => credited(b) - credited(a) || (b === "held_out") - (a === "held_out"));
  const splitName = (s) => ({ held_out: "held-out prompts", train: "training prompts" })[s] || s;
  const distinct = (values) => [...new Set(values)];
  const verdictOf = (run) => (DATA.systems.find((s) => s.name === DATA.runs[run].system) || {}).verdict;

  // Begin where the story is: a hacked system beside one that is not, the same seed if there is one, at the end of training.
  const left = present.find((run) => verdictOf(run) === "hacked") ?? present[0];
  const others = present.filter((run) => DATA.runs[run].system !== DATA.runs[left].system);
  const scoresSteps = (run) => rollouts.some((r) => r.run === run && Object.values(r.scores).some((s) => !["sequence", "token"].includes(s.level)));
  const fair = others.filter((run) => verdictOf(run) !== "hacked" && DATA.runs[run].seed === DATA.runs[left].seed);
  const right = fair.find(scoresSteps) ?? fair[0] ?? others[0] ?? present.find((run) => run !== left);
  const state = { split: splits[0], step: 0, prompt: 0, sides: right === undefined ? [left] : [left, right], chosen: [0, 0] };

  const find = (run, step = state.step, prompt = state.prompt) => rollouts.filter((r) => r.run === run && r.split === state.split && r.step === step && r.prompt === prompt);
  const stepsOf = () => distinct(rollouts.filter((r) => r.split === state.split && state.sides.includes(r.run)).map((r) => r.step)).sort((a, b) => a - b);
  function promptsAt(step) {
    const counts = new Map();
    for (const side of distinct(state.sides)) for (const p of distinct(rollouts.filter((r) => r.run === side && r.split === state.split && r.step === step).map((r) => r.prompt))) counts.set(p, (counts.get(p) || 0) + 1);
    return [...counts].sort((a, b) => b[1] - a[1] || a[0] - b[0]);
  }

  // -- controls -------------------------------------------------------------------------------------------------------------
  const split = el("select", { id: "split" }, ...splits.map((s) => el("option", { value: s }, splitName(s))));
  const slider = el("input", { type: "range", min: 0, step: 1, id: "step", "aria-label": "training step" });
  const output = el("output", { for: "step" });
  const earlier = el("button", { class: "b", type: "button", "aria-label": "earlier step" }, "‹");
  const later = el("button", { class: "b", type: "button", "aria-label": "later step" }, "›");
  const prompt = el("select", { id: "prompt" });
  const field = (label, id, control, grow) => el("div", { class: `field${grow ? " grow" : ""}` }, el("label", { for: id }, label), control);
  const promptText = el("div", { class: "text", tabindex: "0", "aria-label": "prompt" });
  const promptNote = el("small");
  const bar = el("div", { class: "bar", role: "img" });
  const [lowEnd, highEnd] = [el("span"), el("span")];
  const scaleNote = el("span", { class: "masked" });
  const sides = el("div", { class: "sides" });
  host.append(
    el("div", { class: "controls" }, splits.length > 1 ? field("Prompts", "split", split) : "", field("Training step", "step", el("div", { class: "steps" }, earlier, slider, later, output), true), field("Prompt", "prompt", prompt, true)),
    el("div", { class: "prompt" }, promptNote, promptText),
    el("div", { class: "scale" }, "advantage", lowEnd, bar, highEnd, scaleNote), sides,
  );

  split.addEventListener("change", () => { state.split = split.value; toEnd(); render(); });
  slider.addEventListener("input", () => { state.step = stepsOf()[Number(slider.value)]; render(); });
  const walk = (by) => { const steps = stepsOf(), next = steps[steps.indexOf(state.step) + by]; if (next !== undefined) { state.step = next; render(); } };
  earlier.addEventListener("click", () => walk(-1));
  later.addEventListener("click", () => walk(1));
  prompt.addEventListener("change", () => { state.prompt = Number(prompt.value); state.chosen = [0, 0]; render(); });
  function toEnd() {
    const steps = stepsOf();
    state.step = steps[steps.length - 1];
    for (let i = steps.length - 1; i >= 0; i--) if (promptsAt(steps[i]).some(([, n]) => n === distinct(state.sides).length)) { state.step = steps[i]; break; }
  }

  // -- drawing --------------------------------------------------------------------------------------------------------------
  const tint = (value, scale) => {
    const v = Math.max(-1, Math.min(1, value / scale));
    return Math.abs(v) < 1e-6 ? "transparent" : `rgba(var(--${v > 0 ? "pos" : "neg"}), ${(0.07 + 0.63 * Math.abs(v)).toFixed(3)})`;
  };
  const isOwn = (r, i) => !r.mask || r.mask[i] !== 0;

  /** Span-level scores by token: where a span ends, and which spans a token lies in. */
  function spansOf(r) {
    const found = [];
    for (const [name, score] of Object.entries(r.scores)) {
      if (["sequence", "token"].includes(score.level)) continue;
      score.spans.forEach((span, k) => {
        let [start, end] = span;
        if (score.unit === "char") [start, end] = charsToTokens(r, start, end);
        found.push({ name, level: score.level, value: score.values[k], start, end, index: k, count: score.spans.length });
      });
    }
    return found;
  }
  function charsToTokens(r, start, end) {
    let at = 0, first = null, last = null;
    r.tokens.forEach((t, i) => { const next = at + [...t].length; if (next > start && at <= end) { if (first === null) first = i; last = i; } at = next; });
    return [first ?? 0, last ?? -1];
  }

  function tokenNodes(r, scale) {
    const spans = spansOf(r), nodes = [];
    r.tokens.forEach((text, i) => {
      const own = isOwn(r, i), value = r.adv[i];
      const failed = own && value === null;
      const node = el("span", { class: `tok${own ? "" : " masked"}${failed ? " nan" : ""}`, "data-i": i });
      if (own && typeof value === "number") node.style.background = tint(value, scale);
      // A tag stands before the line breaks that end its step, so that it is on the step's own line.
      const tail = text.match(/\n*$/)[0].length, sign = () => el("span", { class: "sign", "aria-hidden": "true" }, "↵");
      text.slice(0, text.length - tail).split("\n").forEach((piece, k) => node.append(...(k ? [sign(), "\n"] : []), piece));
      if (!text) node.append(el("span", { class: "sign" }, "◼"));
      for (const s of spans) if (s.end === i) node.append(el("span", { class: `tag${s.value === null ? " failed" : ""}`, title: s.name }, s.value === null ? "NaN" : signed(s.value)));
      for (let k = 0; k < tail; k++) node.append(sign(), "\n");
      nodes.push(node);
    });
    return nodes;
  }

  function describe(r, i) {
    const own = isOwn(r, i), text = r.tokens[i];
    const lines = [el("div", {}, el("code", {}, text ? JSON.stringify(text).slice(1, -1).slice(0, 80) : "special token"), el("span", { class: "m" }, `  token ${i + 1} of ${r.tokens.length}`))];
    lines.push(el("div", { class: "t" }, own ? (r.adv[i] === null || r.adv[i] === undefined ? "advantage: none" : `advantage ${signed(r.adv[i])}`) : "not sampled by the policy: no credit"));
    for (const s of spansOf(r)) if (s.start <= i && i <= s.end) lines.push(el("div", {}, `${s.name}, ${s.index + 1} of ${s.count}: ${s.value === null ? "NaN" : signed(s.value)}`));
    return lines;
  }

  function tokensView(r, scale) {
    const view = el("div", { class: "text tokens", tabindex: "0", role: "group", "aria-label": `completion of ${r.tokens.length} tokens; arrow keys walk over them` });
    view.append(...tokenNodes(r, scale));
    const toks = [...view.querySelectorAll(".tok")];
    let at = -1;
    const go = (i, x, y) => {
      if (at >= 0) toks[at].classList.remove("at");
      at = Math.max(0, Math.min(toks.length - 1, i));
      toks[at].classList.add("at");
      const box = toks[at].getClientRects()[0] || toks[at].getBoundingClientRect();
      if (x === undefined) toks[at].scrollIntoView({ block: "nearest" });
      showTip(describe(r, at), x ?? box.left, y ?? box.bottom);
    };
    const leave = () => { if (at >= 0) toks[at].classList.remove("at"); at = -1; hideTip(); };
    const under = (event) => { const t = event.target.closest(".tok"); if (t) go(Number(t.dataset.i), event.clientX, event.clientY); };
    view.addEventListener("pointerover", under);
    view.addEventListener("click", under);
    view.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") leave(); });
    view.addEventListener("blur", leave);
    view.addEventListener("keydown", (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -1e9, End: 1e9 }[event.key];
      if (move) { event.preventDefault(); go(at < 0 ? 0 : at + move); } else if (event.key === "Escape") leave();
    });
    return view;
  }

  function sideView(index, groups, scale) {
    const run = state.sides[index], group = groups[index];
    const pick = el("select", { "aria-label": `run on side ${index + 1}` }, ...present.map((i) => el("option", { value: i, selected: i === run }, runName(i))));
    pick.addEventListener("change", () => { state.sides[index] = Number(pick.value); state.chosen[index] = 0; if (!stepsOf().includes(state.step)) toEnd(); render(); focusSide(index); });
    const order = DATA.systems.findIndex((s) => s.name === DATA.runs[run].system);
    const side = el("div", { class: "side", "data-side": index }, el("div", { class: "pick" }, el("span", { class: `swatch s${order % 8}`, "aria-hidden": "true" }), pick));
    if (!group.length) { side.append(el("p", { class: "empty" }, `No rollout of this prompt at step ${state.step} was kept for this run.`)); return side; }
    const chosen = Math.min(state.chosen[index], group.length - 1), r = group[chosen];
    if (group.length > 1) {
      const buttons = group.map((g, i) => {
        const mark = g.true === null ? "" : g.true >= 0.5 ? el("span", { class: "yes" }, " ✓") : el("span", { class: "no" }, " ✗");
        const button = el("button", { type: "button", "aria-pressed": String(i === chosen), "aria-label": `rollout ${i + 1}: reward ${figure(g.reward)}, ${g.true === null ? "truth unknown" : g.true >= 0.5 ? "right" : "wrong"}` }, figure(g.reward), mark);
        button.addEventListener("click", () => { state.chosen[index] = i; render(); sides.querySelector(`[data-side="${index}"] .group button:nth-child(${i + 1})`).focus(); });
        return button;
      });
      side.append(el("div", { class: "group", role: "group", "aria-label": "rollouts of this prompt, by reward" }, ...buttons));
    }
    const numbers = el("dl", { class: "numbers" });
    const add = (name, value) => numbers.append(el("div", {}, el("dt", {}, name), el("dd", {}, value)));
    add("reward", figure(r.reward));
    add("true success", r.true === null ? "–" : r.true >= 1 ? "✓ right" : r.true <= 0 ? "✗ wrong" : figure(r.true));
    add("tokens", String(r.tokens.length));
    for (const [name, s] of Object.entries(r.scores)) if (s.level === "sequence") add(name, s.values[0] === null || s.values[0] === undefined ? "NaN" : figure(s.values[0]));
    for (const [name, s] of Object.entries(r.scores)) if (!["sequence", "token"].includes(s.level)) add(name, name === s.level ? String(s.values.length) : `${s.values.length} ${s.level}`);
    if (!r.kept) numbers.append(el("div", {}, el("dt", { class: "badge inconclusive" }, "left out of training")));
    side.append(numbers, tokensView(r, scale));
    const why = Object.entries(r.reasons);
    if (why.length) side.append(el("ul", { class: "why", "aria-label": "reasons" }, ...why.map(([name, text]) => el("li", {}, el("b", {}, name), ` ${text}`))));
    return side;
  }
  const focusSide = (index) => sides.querySelector(`[data-side="${index}"] select`).focus();

  function render() {
    hideTip();
    const steps = stepsOf();
    if (!steps.includes(state.step)) state.step = steps[steps.length - 1];
    slider.max = steps.length - 1;
    slider.value = steps.indexOf(state.step);
    slider.setAttribute("aria-valuetext", `step ${state.step}`);
    output.textContent = state.step;
    earlier.disabled = state.step === steps[0];
    later.disabled = state.step === steps[steps.length - 1];
    const options = promptsAt(state.step);
    if (!options.some(([p]) => p === state.prompt)) { state.prompt = options[0][0]; state.chosen = [0, 0]; }
    const brief = (text) => { const flat = text.replace(/\s+/g, " ").trim(); return flat.length > 90 ? `${flat.slice(0, 88)}…` : flat || "(empty prompt)"; };
    prompt.replaceChildren(...options.map(([p, n]) => el("option", { value: p, selected: p === state.prompt }, brief(DATA.prompts[p]) + (n < distinct(state.sides).length ? "  (one side only)" : ""))));
    promptNote.textContent = splitName(state.split).replace("prompts", "prompt");
    promptText.textContent = DATA.prompts[state.prompt];
    const groups = state.sides.map((run) => find(run));
    const sizes = groups.flat().flatMap((r) => r.adv.filter((a) => a !== null).map(Math.abs)).sort((a, b) => a - b);
    const scale = sizes.length ? sizes[Math.min(sizes.length - 1, Math.floor(sizes.length * 0.99))] || 1 : 1;
    const stops = [-1, -0.5, 0, 0.5, 1].map((v) => tint(v * scale, scale)).join(", ");
    bar.style.background = `linear-gradient(to right, ${stops})`;
    bar.setAttribute("aria-label", `colour scale from ${figure(-scale)} (orange) over 0 to ${figure(scale)} (blue)`);
    lowEnd.textContent = figure(-scale);
    highEnd.textContent = signed(scale);
    const masked = groups.flat().some((r) => r.mask);
    scaleNote.textContent = (groups.length > 1 ? "one scale for both sides" : "") + (masked ? "; hatched: not sampled by the policy" : "");
    if (sizes.length && sizes[sizes.length - 1] === 0) scaleNote.textContent = "every advantage here is 0: the rollouts of the group scored the same, or none of them is trained on";
    sides.className = `sides${state.sides.length > 1 ? "" : " one"}`;
    sides.replaceChildren(...state.sides.map((_, i) => sideView(i, groups, scale)));
  }

  const counted = Object.entries(DATA.reasons);
  if (counted.length) {
    const block = el("div", { class: "reasons" });
    for (const [system, rows] of counted) block.append(el("details", {}, el("summary", {}, `Reasons given for scores: ${system}`), el("table", {}, ...rows.map(([text, n]) => el("tr", {}, el("td", {}, `${n}×`), el("td", {}, text))))));
    host.append(block);
  }
  toEnd();
  render();
  document.documentElement.dataset.ready = "1";
})();
