"""The report in a real browser, and what it says about runs that are incomplete or odd."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from guerdon.report import build_report, summarise
from guerdon.report.build import _panels, embed
from guerdon.report.table import figure

MakeRun = Callable[..., Path]
BROWSER = next((b for b in map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome")) if b), None)
FLAGS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage", "--hide-scrollbars", "--enable-logging=stderr", "--v=0",
    "--virtual-time-budget=5000",
]  # fmt: skip
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium is installed (Debian: apt-get install chromium)"
)


def browse(page: Path, scratch: Path, *flags: str, width: int = 1280, height: int = 2400) -> tuple[str, list[str]]:
    """(the document after its scripts have run, console messages)."""
    assert BROWSER is not None
    profile = scratch / f"profile{width}{len(list(scratch.iterdir()))}"
    command = [BROWSER, *FLAGS, f"--user-data-dir={profile}", f"--window-size={width},{height}", *flags, page.as_uri()]
    done = subprocess.run(command, capture_output=True, timeout=120)
    console = [line for line in done.stderr.decode(errors="replace").splitlines() if ":CONSOLE" in line]
    return done.stdout.decode(errors="replace"), console


def data_of(page: Path) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page.read_text(), re.S)
    assert found
    return json.loads(found[1])


def framed(page: Path, width: int) -> Path:
    """A page that shows another one `width` pixels wide (browser windows have a minimum) and passes on what a probe saw."""
    listen = 'addEventListener("message", (e) => { document.getElementById("probe").textContent = e.data; })'
    frame = f'<iframe src="{page.as_uri()}" style="border:0;width:{width}px;height:5000px"></iframe>'
    wrapper = page.with_name(f"frame{width}-{page.name}")
    wrapper.write_text(f'<!doctype html><pre id="probe"></pre><script>{listen}</script>{frame}')
    return wrapper


def probed(page: Path, script: str) -> Path:
    """The page with a script at its end that uses it as a person would and leaves what it saw in an element."""
    copy = page.with_name(f"probe-{abs(hash(script))}.html")
    text = page.read_text().replace("</body>", f'<pre id="probe"></pre><script>{script}</script></body>')
    copy.write_text(text)
    return copy


def seen(dom: str) -> Any:
    found = re.search(r'<pre id="probe">(.*?)</pre>', dom, re.S)
    assert found and found[1], "the probe did not run"
    return json.loads(html.unescape(found[1]))


PROBE = """
const $ = (q) => document.querySelector(q), all = (q) => [...document.querySelectorAll(q)];
const report = (o) => { $("#probe").textContent = JSON.stringify(o); parent.postMessage(JSON.stringify(o), "*"); };
const press = (node, key) => node.dispatchEvent(new KeyboardEvent("keydown", { key, bubbles: true }));
"""


@pytest.fixture(scope="module")
def page(comparison: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_report(comparison, tmp_path_factory.mktemp("page") / "report.html", "Three systems")


# -- in the browser --------------------------------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_it_is_drawn_without_console_messages(page: Path, tmp_path: Path, width: int) -> None:
    script = PROBE + """
    setTimeout(() => report({
      ready: document.documentElement.dataset.ready, width: innerWidth, wide: document.documentElement.scrollWidth,
      overflowing: all("main *").filter((n) => n.getBoundingClientRect().right > innerWidth + 1 && !n.closest("svg, .tokens, pre, thead")).map((n) => n.className || n.tagName),
      tinted: all(".tok").filter((t) => /rgba?\\(/.test(getComputedStyle(t).backgroundColor) && getComputedStyle(t).backgroundColor !== "rgba(0, 0, 0, 0)").length,
      tokens: all(".tok").length, tags: all(".tag").length, sides: all(".side").length,
      gap: all("#gap .card").map((c) => [c.dataset.system, c.querySelectorAll("svg path").length, c.querySelector(".badge").textContent.trim()]),
      panels: all("#panels .card").map((c) => c.dataset.panel), drawn: all("#panels svg path").length,
      stacked: all(".side").length > 1 && all(".side")[1].getBoundingClientRect().top > all(".side")[0].getBoundingClientRect().bottom - 1,
      unlabelled: all("select, input, button, svg[tabindex], [role=group]").filter((n) => !(n.getAttribute("aria-label") || (n.id && $(`label[for="${n.id}"]`)) || n.textContent.trim())).length,
    }), 600);
    """  # fmt: skip
    dom, console = browse(framed(probed(page, script), width), tmp_path, "--dump-dom", width=max(600, width + 40))
    assert console == []
    found = seen(dom)
    assert found["ready"] == "1" and found["width"] == width
    assert found["wide"] <= width and found["overflowing"] == []
    assert found["tokens"] > 20 and found["tinted"] > 20 and found["tags"] > 3 and found["sides"] == 2
    assert [(name, badge) for name, _, badge in found["gap"]] == [
        ("outcome", "✓ not hacked"), ("pure", "✓ not hacked"), ("pure:credit=sum", "▲ hacked"),
    ]  # fmt: skip
    assert all(paths >= 5 for _, paths, _ in found["gap"])  # a band and a line each, and each seed's thin lines
    assert {"Length", "KL to the start", "Truncated", "Kept", "answer", "steps", "steps: not scored"} <= set(
        found["panels"]
    )
    assert found["drawn"] >= 2 * len(found["panels"])
    assert found["stacked"] == (width == 390) and found["unlabelled"] == 0


@pytest.fixture(scope="module")
def crowd(make_run: MakeRun, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Twenty arms with long names, two of them hacked."""
    root = tmp_path_factory.mktemp("crowd")
    runs = []
    for i in range(20):
        kind = "sum" if i in (3, 11) else "min"
        run = make_run(root / f"arm{i:02d}" / "seed0", kind, i)
        manifest = json.loads((run / "manifest.json").read_text())
        manifest["system"] = f"hybrid_multi_aspect:verifiable=true,preset=hybrid_length_{i:02d},temperature=0.{i:02d}1"
        (run / "manifest.json").write_text(json.dumps(manifest))
        runs.append(run)
    return runs


@needs_browser
def test_twenty_arms_fit_a_phone(crowd: list[Path], tmp_path: Path) -> None:
    page = build_report(crowd, tmp_path / "report.html", "Twenty systems")
    script = PROBE + """
    setTimeout(() => report({
      width: innerWidth, wide: document.documentElement.scrollWidth,
      overflowing: all("main *").filter((n) => n.getBoundingClientRect().right > innerWidth + 1 && !n.closest("svg, .tokens, pre, thead")).map((n) => n.tagName + "." + n.className),
    }), 900);
    """  # fmt: skip
    dom, console = browse(framed(probed(page, script), 390), tmp_path, "--dump-dom", width=600)
    assert console == []
    found = seen(dom)
    assert found["overflowing"] == [] and found["wide"] <= found["width"] == 390


def test_the_first_sentence_about_many_arms_counts_them(crowd: list[Path]) -> None:
    from guerdon.report.header import lede

    sentence = re.sub(r"<.*?>", "", lede(summarise(crowd)))
    assert "18 of 20 systems were not hacked" in sentence
    assert sentence.count("hybrid_multi_aspect") == 2, "those that were hacked are named"
    assert len(sentence) < 400


@needs_browser
def test_the_heat_map_shows_its_colours(page: Path, tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    script = PROBE + "document.querySelector('#browser').scrollIntoView(); report({});"
    shot = tmp_path / "shot.png"
    browse(probed(page, script), tmp_path, f"--screenshot={shot}", height=3200)
    pixels = image.open(shot).convert("RGB").resize((640, 1600))
    counted = pixels.getcolors(640 * 1600)
    blue = sum(n for n, (r, g, b) in counted if b - r > 40 and b > g > r)
    orange = sum(n for n, (r, g, b) in counted if r - b > 40 and r > g > b)
    assert blue > 200 and orange > 200


@needs_browser
def test_it_can_be_used_with_the_keyboard(page: Path, tmp_path: Path) -> None:
    script = (
        PROBE
        + """
    setTimeout(() => {
      const out = {}, tip = $("#tip");
      const view = $(".side .tokens");
      view.focus(); press(view, "ArrowRight"); press(view, "ArrowRight");
      out.token = tip.textContent; out.at = all(".tok.at").length; out.shown = !tip.hidden;
      press(view, "Escape"); out.closed = tip.hidden;
      const before = $("#step").value;
      $("#step").value = 0; $("#step").dispatchEvent(new Event("input"));
      out.step = $("output").textContent; out.moved = before !== $("#step").value; out.firstDisabled = $(".steps button").disabled;
      const pick = $(".side select"); out.choices = [...pick.options].map((o) => o.textContent);
      pick.value = pick.options[0].value; pick.dispatchEvent(new Event("change"));
      out.swapped = $(".side select").selectedOptions[0].textContent;
      all(".side")[0].querySelectorAll(".group button")[2].click();
      out.pressed = all(".side")[0].querySelectorAll(".group button")[2].getAttribute("aria-pressed");
      $("#split").value = "train"; $("#split").dispatchEvent(new Event("change"));
      out.train = $(".prompt small").textContent; out.trainTokens = all(".tok").length;
      const chart = $("#gap svg[tabindex]"); press(chart, "ArrowRight"); press(chart, "ArrowRight"); out.chart = tip.textContent;
      const was = getComputedStyle(document.body).backgroundColor;
      $("#theme").click(); out.theme = getComputedStyle(document.body).backgroundColor !== was;
      report(out);
    }, 500);
    """
    )
    dom, console = browse(probed(page, script), tmp_path, "--dump-dom")
    assert console == []
    out = seen(dom)
    assert (
        out["shown"]
        and out["at"] == 1
        and "token 2 of" in out["token"]
        and "advantage" in out["token"]
        and "steps, 1 of" in out["token"]
    )
    assert out["closed"] and out["moved"] and out["step"] == "0" and out["firstDisabled"]
    assert len(out["choices"]) == 6 and out["swapped"] == "outcome, seed 0" and out["pressed"] == "true"
    assert out["train"] == "training prompt" and out["trainTokens"] > 10
    assert out["chart"].startswith("step 5") and "true success" in out["chart"] and "reward" in out["chart"]
    assert out["theme"]


@needs_browser
def test_odd_runs_are_drawn_too(make_run: MakeRun, tmp_path: Path) -> None:
    """Nothing but a manifest; no manifest; one evaluation; texts without tokens; messages; script ends; null everywhere."""
    (tmp_path / "bare").mkdir()
    odd = make_run(tmp_path / "odd", "min", 0, system="</script><script>alert(1)</script>&<b>")
    rows = [json.loads(line) for line in (odd / "rollouts.jsonl").read_text().splitlines()][-4:]
    rows[0] |= {
        "prompt": [{"role": "user", "content": "</script><!-- 2+2?"}],
        "tokens": None,
        "advantages": None,
        "mask": None,
    }
    rows[1] |= {
        "advantages": [None] * len(rows[1]["tokens"]),
        "reward": None,
        "true": None,
        "reasons": ["a", "b"],
        "scores": None,
    }
    rows[2] |= {"mask": [i % 2 == 0 for i in range(len(rows[2]["tokens"]))], "reasons": None}
    chars = {"level": "sentences", "unit": "char", "values": [None, 0.5], "spans": [[0, 3], [4, 8]]}
    rows[3] |= {
        "tokens": ["🦜\u2028", "a\n\nb", "\ud83e", ""],
        "advantages": [1e-9, -2, 3, 0],
        "mask": [True] * 4,
        "scores": {"s": chars},
    }
    lines = [json.dumps(row) for row in rows]
    (odd / "rollouts.jsonl").write_text("\n".join(lines) + "\n" + lines[0][:40])
    (odd / "eval.jsonl").write_text((odd / "eval.jsonl").read_text().splitlines()[0] + "\nnot json\n")
    (odd / "metrics.jsonl").write_text('{"step": 1, "reward": null, "components": {"x": {"mean": null, "nan": 1.0}}}\n')
    (odd / "manifest.json").write_text((odd / "manifest.json").read_text().replace('"done"', '"interrupted"'))
    page = build_report([tmp_path / "bare", odd], tmp_path / "report.html")
    text = page.read_text()
    assert "bare, seed ?: manifest.json is missing" in text and "eval.jsonl: 1 line(s) that are no JSON" in text
    assert "status &#x27;interrupted&#x27;: this is what it had at step 1" in text
    assert "<script>alert" not in text
    script = (
        PROBE
        + """setTimeout(() => { const prompts = [...$("#prompt").options].length, tokens = [];
      for (let i = 0; i < prompts; i++) { $("#prompt").selectedIndex = i; $("#prompt").dispatchEvent(new Event("change"));
        for (let k = 0; k < Math.max(1, all(".group button").length); k++) {
          const button = all(".group button")[k]; if (button) button.click();
          const view = $(".tokens"); if (view) { press(view, "ArrowRight"); tokens.push(all(".tok").length); }
        } }
      report({ ready: document.documentElement.dataset.ready, tokens, masked: all(".masked").length }); }, 400);"""
    )
    dom, console = browse(probed(page, script), tmp_path, "--dump-dom")
    assert console == []
    out = seen(dom)
    assert out["ready"] == "1" and len(out["tokens"]) >= 3


@needs_browser
def test_no_runs_and_no_rollouts(tmp_path: Path) -> None:
    for name, runs in (("none", []), ("empty", [tmp_path / "empty-run"])):
        for run in runs:
            run.mkdir()
        dom, console = browse(build_report(runs, tmp_path / f"{name}.html"), tmp_path, "--dump-dom")
        assert console == [] and 'data-ready="1"' in dom and "nothing to browse" in dom


# -- without one -----------------------------------------------------------------------------------------------------------


def test_it_asks_nothing_of_the_network(page: Path) -> None:
    text = page.read_text()
    assert "default-src 'none'" in text
    assert not re.findall(r"""(?:src|href)\s*=\s*["']?(?!data:)[^"'\s>]*//""", text)
    assert not re.search(r"@import|url\((?!['\"]?(?:data:|#))|fetch\(|XMLHttpRequest|WebSocket|import\(", text)


def test_the_table_says_it_in_words(page: Path, comparison: list[Path]) -> None:
    text = page.read_text()
    hacked = {s.system: s.verdict.hacked for s in summarise(comparison)}
    assert hacked == {"outcome": False, "pure": False, "pure:credit=sum": True}
    assert "<b>pure:credit=sum</b> was hacked" in text and "<b>outcome</b> and <b>pure</b> were not hacked." in text
    assert "guerdon compare outcome pure pure:credit=sum --seeds 2 --steps 60" in text
    assert "What this page does not show" not in text  # nothing is missing


def test_large_logs_are_cut_evenly_and_it_says_so(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "sum", 0, size=10)  # 13 steps, 2 splits, 2 groups of 10: 520 rollouts
    page = build_report([run], tmp_path / "report.html", max_rollouts=100)
    kept = data_of(page)["rollouts"]
    steps = {split: sorted({r["step"] for r in kept if r["split"] == split}) for split in ("train", "held_out")}
    assert len(kept) <= 100 and f"{len(kept)} of 520 logged rollouts" in page.read_text()
    assert all(found[0] == 0 and found[-1] == 60 and len(found) >= 3 for found in steps.values())
    tiny = data_of(build_report([run], tmp_path / "tiny.html", max_tokens=10))["rollouts"]
    assert {r["step"] for r in tiny} == {0, 60}  # the two ends are always there
    counts = Counter((r["split"], r["step"], r["group"]) for r in tiny)
    assert max(counts.values()) == 8


def test_a_step_written_twice_counts_once(make_run: MakeRun, tmp_path: Path) -> None:
    run = make_run(tmp_path / "run", "min", 0)
    lines = (run / "eval.jsonl").read_text()
    (run / "eval.jsonl").write_text(
        lines + json.dumps({"step": 60, "true_success": {"mean": 0.25, "se": 0.1, "n": 10}}) + "\n"
    )
    (summary,) = summarise([run])
    assert summary.true_end.mean == 0.25 and summary.reward_end.seeds == 0 and summary.verdict.hacked is None


def test_worse_is_not_called_fine(make_run: MakeRun, tmp_path: Path) -> None:
    """True success and reward collapse together: not hacking, and no green tick either."""
    run = make_run(tmp_path / "run", "outcome", 0)
    ends = [
        {"step": s, "true_success": {"mean": m, "se": 0.01, "n": 128}, "reward": {"mean": m, "se": 0.01, "n": 128}}
        for s, m in ((0, 0.6), (60, 0.1))
    ]
    (run / "eval.jsonl").write_text("".join(json.dumps(end) + "\n" for end in ends))
    (summary,) = summarise([run])
    assert summary.verdict.hacked is False and summary.verdict.worse
    text = build_report([run], tmp_path / "report.html").read_text()
    assert "not hacked, worse" in text and "✓</span> not hacked" not in text
    assert "<b>outcome</b> was not hacked: true success fell by 0.50 and the reward by 0.5: worse, not hacked." in text


def test_embedded_json_is_safe_and_valid() -> None:
    value = {"a": "</script><!--\u2028", "b": float("nan"), "c": [float("inf"), 1.5]}
    text = embed(value)
    assert "<" not in text and "\u2028" not in text
    assert json.loads(text) == {"a": "</script><!--\u2028", "b": None, "c": [None, 1.5]}


@pytest.mark.parametrize(
    ("value", "shown"), [(0.0, "0.00"), (-0.0, "0.00"), (-1.5, "−1.50"), (123.4, "123"), (12.34, "12.3"), (0.0123, "0.012"), (3e-5, "0.00"), (float("nan"), "–")]
)  # fmt: skip
def test_figures(value: float, shown: str) -> None:
    assert figure(value) == shown


def test_what_the_chain_logs_is_drawn_and_failures_that_never_were_are_not(make_run, tmp_path: Path) -> None:

    folder = make_run(tmp_path / "run", "min", 0)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        line["chain"] = {"shaped/mean": 0.5, "failed/answer": 0.0, "failed/steps": float(line["step"] == 2)}
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    panels = {panel["title"]: panel for panel in _panels(summarise([folder]))}
    assert {"shaped/mean", "failed/steps", "answer"} <= panels.keys() and "failed/answer" not in panels
    assert panels["shaped/mean"]["series"]["pure"][0] == [1, 0.5, 0.5, 0.5]
