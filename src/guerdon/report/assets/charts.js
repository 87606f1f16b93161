"use strict";
// Line charts as inline SVG: the hacking plot of each system and the small multiples. No library.
const DATA = JSON.parse(document.getElementById("data").textContent);
const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 3", "2 3", "9 3 2 3", "5 2 1 2 1 2", "1 3", "12 4", "4 4"];
const MARKS = { hacked: "▲", "not hacked": "✓", worse: "▼", "not measurable": "?", inconclusive: "?" };
const words = (verdict) => (verdict === "worse" ? "not hacked, worse" : verdict);
const colour = (i) => `var(--s${i % 8})`;

function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) if (value !== null && value !== false) node.setAttribute(key, value === true ? "" : value);
  node.append(...children);
  return node;
}
function svg(tag, attributes = {}, text = null) {
  const node = document.createElementNS(SVG, tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== null) node.textContent = text;
  return node;
}
/** A number for people: about three digits, a real minus sign; an en dash for none. */
function figure(value, digits = null) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  const size = Math.abs(value);
  if (digits === null) digits = size >= 100 ? 0 : size >= 10 ? 1 : size >= 0.1 || size === 0 ? 2 : size >= 0.01 ? 3 : size >= 0.001 ? 4 : 2;
  let text = value.toFixed(digits);
  if (Number(text) === 0) text = text.replace("-", "");
  return text.replace("-", "−");
}
const signed = (value) => (value > 0 ? "+" : "") + figure(value);

/** Round tick values inside [low, high], about `count` of them. */
function ticks(low, high, count) {
  const raw = (high - low) / Math.max(1, count);
  if (!(raw > 0)) return [low];
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((m) => m * power).find((s) => s >= raw * 0.999);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
  return found;
}
const tickText = (value, all) => {
  const step = all.length > 1 ? Math.abs(all[1] - all[0]) : Math.abs(value) || 1;
  const digits = Math.max(0, Math.min(4, -Math.floor(Math.log10(step) + 1e-9)));
  const exact = Math.abs(step * 10 ** digits - Math.round(step * 10 ** digits)) > 1e-6 ? digits + 1 : digits;
  return figure(value, exact);
};

const tip = document.getElementById("tip");
function showTip(lines, x, y) {
  tip.replaceChildren(...lines);
  tip.hidden = false;
  const box = tip.getBoundingClientRect();
  const left = Math.min(Math.max(8, x + 14), innerWidth - box.width - 8);
  const top = y + 18 + box.height > innerHeight ? Math.max(8, y - box.height - 14) : y + 18;
  tip.style.left = `${left}px`;
  tip.style.top = `${top}px`;
}
const hideTip = () => { tip.hidden = true; };
addEventListener("scroll", hideTip, { passive: true });

let clips = 0;
/**
 * Draw one chart into `host`, again whenever its width changes.
 * spec: { lines: [{name, points: [[x, y, low, high]], colour, dash, width, thin: [[[x, y]]], show}], y: [low, high], yTicks, right: {ticks, text},
 *         height, label, rightLabel, leftLabel }
 */
function chart(host, spec) {
  const drawing = svg("svg", { role: "img", tabindex: "0", "aria-label": spec.label });
  host.append(drawing);
  const xs = [...new Set(spec.lines.flatMap((line) => line.points.map((p) => p[0])))].sort((a, b) => a - b);
  const [x0, x1] = [xs[0], xs[xs.length - 1]];
  let at = -1, place = null, cursor = null, dots = null;

  function draw() {
    const width = Math.max(180, host.clientWidth - 0), height = spec.height;
    const margin = { left: spec.leftWidth || 36, right: spec.right ? 40 : 10, top: spec.leftLabel ? 24 : 10, bottom: 34 };
    const w = width - margin.left - margin.right, h = height - margin.top - margin.bottom;
    const X = (v) => margin.left + (x1 === x0 ? w / 2 : ((v - x0) / (x1 - x0)) * w);
    const Y = (v) => margin.top + (1 - (v - spec.y[0]) / (spec.y[1] - spec.y[0])) * h;
    drawing.setAttribute("viewBox", `0 0 ${width} ${height}`);
    drawing.setAttribute("height", height);
    const parts = [];
    const clip = `clip${clips++}`;
    const defs = svg("defs"), path = svg("clipPath", { id: clip });
    path.append(svg("rect", { x: margin.left, y: margin.top - 1, width: w, height: h + 2 }));
    defs.append(path);
    parts.push(defs);
    for (const t of spec.yTicks) {
      parts.push(svg("line", { x1: margin.left, x2: width - margin.right, y1: Y(t), y2: Y(t), class: "grid" }));
      parts.push(svg("text", { x: margin.left - 7, y: Y(t) + 4, "text-anchor": "end" }, tickText(t, spec.yTicks)));
    }
    if (spec.right) for (const [t, text] of spec.right) {
      parts.push(svg("line", { x1: width - margin.right, x2: width - margin.right + 4, y1: Y(t), y2: Y(t), class: "axis" }));
      parts.push(svg("text", { x: width - margin.right + 8, y: Y(t) + 4 }, text));
    }
    if (spec.leftLabel) parts.push(svg("text", { x: 0, y: 11 }, spec.leftLabel));
    if (spec.rightLabel) parts.push(svg("text", { x: width, y: 11, "text-anchor": "end" }, spec.rightLabel));
    parts.push(svg("line", { x1: margin.left, x2: width - margin.right, y1: margin.top + h, y2: margin.top + h, class: "axis" }));
    const steps = x1 === x0 ? [x0] : ticks(x0, x1, Math.min(6, w / 60)).filter(Number.isInteger);
    for (const t of steps) parts.push(svg("text", { x: X(t), y: height - 17, "text-anchor": "middle" }, String(t)));
    parts.push(svg("text", { x: margin.left + w / 2, y: height - 2, "text-anchor": "middle" }, "step"));
    const inside = svg("g", { "clip-path": `url(#${clip})` });
    const d = (points) => points.map((p, i) => `${i ? "L" : "M"}${X(p[0]).toFixed(1)} ${Y(p[1]).toFixed(1)}`).join("");
    for (const line of spec.lines) {
      const band = line.points.filter((p) => p[2] !== null && p[3] !== null);
      if (band.length > 1) {
        const edge = [...band.map((p) => [p[0], p[3]]), ...band.map((p) => [p[0], p[2]]).reverse()];
        inside.append(svg("path", { d: d(edge) + "Z", fill: line.colour, opacity: line.bandOpacity || 0.15 }));
      } else if (band.length === 1) {
        inside.append(svg("line", { x1: X(band[0][0]), x2: X(band[0][0]), y1: Y(band[0][2]), y2: Y(band[0][3]), stroke: line.colour, opacity: 0.4, "stroke-width": 5 }));
      }
    }
    for (const line of spec.lines) {
      for (const thin of line.thin || []) inside.append(svg("path", { d: d(thin), fill: "none", stroke: line.colour, "stroke-width": 1, opacity: 0.45, "stroke-dasharray": line.dash }));
      inside.append(svg("path", { d: d(line.points), fill: "none", stroke: line.colour, "stroke-width": line.width || 2, "stroke-dasharray": line.dash, "stroke-linejoin": "round", "stroke-linecap": line.dash ? "butt" : "round" }));
      if (line.points.length === 1) inside.append(svg("circle", { cx: X(line.points[0][0]), cy: Y(line.points[0][1]), r: 3.5, fill: line.colour }));
    }
    parts.push(inside);
    cursor = svg("line", { y1: margin.top, y2: margin.top + h, class: "cursor", visibility: "hidden" });
    dots = svg("g");
    parts.push(cursor, dots);
    drawing.replaceChildren(...parts);
    place = { X, Y, margin, w };
  }

  function point(index, clientX, clientY) {
    at = Math.max(0, Math.min(xs.length - 1, index));
    const step = xs[at], x = place.X(step);
    cursor.setAttribute("x1", x);
    cursor.setAttribute("x2", x);
    cursor.setAttribute("visibility", "visible");
    const lines = [el("div", { class: "t" }, `step ${step}`)];
    dots.replaceChildren();
    for (const line of spec.lines) {
      const p = line.points.find((q) => q[0] === step);
      if (!p || p[1] === null) continue;
      dots.append(svg("circle", { cx: x, cy: place.Y(p[1]), r: 3.5, fill: line.colour }));
      const raw = line.raw ? line.raw.find((q) => q[0] === step) : p;
      const bounds = raw[2] === null || raw[2] === undefined ? "" : ` [${figure(raw[2])}, ${figure(raw[3])}]`;
      lines.push(el("div", {}, `${line.name} `, el("b", {}, figure(raw[1])), el("span", { class: "m" }, bounds)));
    }
    const box = drawing.getBoundingClientRect();
    showTip(lines, clientX ?? box.left + x, clientY ?? box.top + 20);
  }
  const clear = () => { cursor.setAttribute("visibility", "hidden"); dots.replaceChildren(); hideTip(); at = -1; };
  const nearest = (event) => {
    const x = event.clientX - drawing.getBoundingClientRect().left;
    let best = 0;
    xs.forEach((v, i) => { if (Math.abs(place.X(v) - x) < Math.abs(place.X(xs[best]) - x)) best = i; });
    point(best, event.clientX, event.clientY);
  };
  drawing.addEventListener("pointermove", nearest);
  drawing.addEventListener("pointerdown", nearest);
  drawing.addEventListener("pointerleave", clear);
  drawing.addEventListener("blur", clear);
  drawing.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) { event.preventDefault(); point(at < 0 ? (move > 0 ? 0 : xs.length - 1) : at + move); }
    else if (event.key === "Escape") clear();
  });
  let seen = -1;
  new ResizeObserver(() => { if (host.clientWidth !== seen) { seen = host.clientWidth; requestAnimationFrame(draw); } }).observe(host);
}

const stroke = (i, dash, isReward) => {
  const sample = svg("svg", { width: 26, height: 8, "aria-hidden": "true", style: "width:26px;flex:none" });
  sample.append(svg("line", { x1: 0, x2: 26, y1: 4, y2: 4, stroke: isReward ? "var(--ink)" : colour(i), "stroke-width": isReward ? 1.8 : 2.6, "stroke-dasharray": dash }));
  return sample;
};
const finite = (points) => points.filter((p) => p[1] !== null);

/** How rewards are laid on the axis of true success: onto itself if it is a share, else so that both start at one height. */
function rewardScale(system) {
  const seen = finite([...system.reward, ...system.seeds.flatMap((s) => s.reward)]).map((p) => p[1]);
  if (!seen.length || (Math.min(...seen) >= 0 && Math.max(...seen) <= 1)) return { to: (r) => r, from: (v) => v, shared: true };
  const r0 = finite(system.reward)[0][1], truth = finite(system.truth);
  const t0 = Math.min(0.9, Math.max(0.1, truth.length ? truth[0][1] : 0.5));
  const up = Math.max(...seen) - r0, down = r0 - Math.min(...seen);
  const scale = Math.min(1 / Math.max(0.25 * Math.abs(r0), 0.1), up > 0 ? (0.98 - t0) / up : Infinity, down > 0 ? (t0 - 0.02) / down : Infinity);
  return { to: (r) => t0 + (r - r0) * scale, from: (v) => r0 + (v - t0) / scale, shared: false };
}

function gapChart(system, index) {
  const scale = rewardScale(system), lay = (points) => finite(points).map((p) => [p[0], ...p.slice(1).map((v) => (v === null ? null : scale.to(v)))]);
  const truth = finite(system.truth), reward = finite(system.reward);
  const several = system.seeds.length > 1;
  const lines = [];
  if (truth.length) lines.push({ name: "true success", points: truth, colour: colour(index), dash: "", width: 3, bandOpacity: 0.2, thin: several ? system.seeds.map((s) => finite(s.truth)) : [] });
  if (reward.length) lines.push({ name: "reward", points: lay(reward), raw: reward, colour: "var(--ink)", dash: "6 4", width: 1.8, bandOpacity: 0.08, thin: several ? system.seeds.map((s) => lay(s.reward)) : [] });
  const card = el("div", { class: "card", "data-system": system.name });
  const badge = el("span", { class: `badge ${system.verdict.replace(" ", "-")}`, title: system.reason }, el("span", { "aria-hidden": "true" }, MARKS[system.verdict]), ` ${words(system.verdict)}`);
  card.append(el("div", { class: "head" }, el("h3", {}, system.name), badge));
  const entry = (points, name, isReward) => points.length ? el("span", {}, stroke(index, isReward ? "6 4" : "", isReward), `${name} `, el("span", { class: "from" }, figure(points[0][1])), "→", el("b", {}, figure(points[points.length - 1][1]))) : el("span", { class: "none" }, `${name} not measured`);
  card.append(el("div", { class: "key" }, entry(truth, "true success", false), entry(reward, "reward", true)));
  if (!lines.length) return card;
  const host = el("div");
  card.append(host);
  const visible = ticks(scale.from(-0.02), scale.from(1.02), 5);
  const say = (name, points) => points.length ? `${name} from ${figure(points[0][1])} to ${figure(points[points.length - 1][1])}` : `${name} not measured`;
  chart(host, {
    lines, y: [-0.02, 1.02], yTicks: [0, 0.25, 0.5, 0.75, 1], height: 270,
    right: reward.length ? visible.map((r) => [scale.to(r), tickText(r, visible)]) : null,
    leftLabel: "true success", rightLabel: reward.length ? (scale.shared ? "reward (same scale)" : "reward") : null,
    label: `${system.name}, ${words(system.verdict)}: ${say("true success", truth)}, ${say("reward", reward)}. Arrow keys read the values.`,
  });
  return card;
}

function panelChart(panel) {
  const names = DATA.systems.map((s) => s.name);
  const lines = names.map((name, i) => ({ name, points: finite(panel.series[name] || []), colour: colour(i), dash: DASHES[i % 8], width: 2.2, bandOpacity: 0.13 })).filter((line) => line.points.length);
  const means = lines.flatMap((line) => line.points.map((p) => p[1]));
  const edges = lines.flatMap((line) => line.points.flatMap((p) => [p[2], p[3]])).filter((v) => v !== null);
  let low = panel.bounds[0] ?? Math.min(...means), high = panel.bounds[1] ?? Math.max(...means);
  // Bands of few seeds can be far wider than what happened: they may stretch the axis by half of the lines' own range.
  const slack = (high - low) * 0.5;
  if (panel.bounds[0] === null) low = Math.max(Math.min(low, ...edges), low - slack);
  if (panel.bounds[1] === null) high = Math.min(Math.max(high, ...edges), high + slack);
  if (!(high > low)) { const room = Math.abs(high) * 0.1 || 1; high += room; if (panel.bounds[0] === null) low -= room; }
  const pad = (high - low) * 0.04, yTicks = ticks(low, high, 4);
  const card = el("div", { class: "card", "data-panel": panel.title });
  card.append(el("div", { class: "head" }, el("h3", {}, panel.title)), el("p", { class: "unit" }, `${panel.unit}; ${panel.source}`));
  const host = el("div");
  card.append(host);
  const label = lines.map((line) => `${line.name} from ${figure(line.points[0][1])} to ${figure(line.points[line.points.length - 1][1])}`).join("; ");
  const widest = Math.max(...yTicks.map((t) => tickText(t, yTicks).length));
  chart(host, { lines, y: [low - pad, high + pad], yTicks, height: 190, leftWidth: 16 + 7 * widest, label: `${panel.title}: ${label}. Arrow keys read the values.` });
  return card;
}

document.getElementById("gap").append(...DATA.systems.map(gapChart));
if (DATA.systems.length > 1) document.getElementById("legend").append(...DATA.systems.map((s, i) => el("span", {}, stroke(i, DASHES[i % 8], false), s.name)));
document.getElementById("panels").append(...DATA.panels.map(panelChart));
if (!DATA.panels.length) document.getElementById("panels").append(el("p", { class: "empty" }, "Nothing was logged that could be drawn here."));

document.getElementById("theme").addEventListener("click", () => {
  const root = document.documentElement;
  const dark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
  root.dataset.theme = dark ? "light" : "dark";
});
