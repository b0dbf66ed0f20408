// One answer on the page: its text by speaker, its figures, its plot, and what can be done with
// it. Knows the record of an answer; does not know how to ask a server.
//
// Text that a model wrote, or a file held, gets into the page as textContent and no other way.

import { element } from "./element.js";
import { ended, remedy } from "./ended.js";
import { exportPage } from "./export.js";
import { inspect } from "./inspect.js";
import { answerable, message, sections, spoken } from "./parts.js";
import { plot } from "./plot.js";
import { resultsForm } from "./results.js";
import { grow, spansOf } from "./text.js";
import { hasGrammar, shownPieces, stored } from "./trace.js";
import { compare } from "./whatif.js";

const percent = (share) => `${(100 * share).toFixed(share && share < 0.1 ? 1 : 0)} %`;
let ids = 0;

export class Answer {
  // record: see trace.js. title: who answers. say: tells a screen reader. again(answer, gamma):
  // writes the answer at another γ; left out where that makes no sense. reply(answer, results): goes
  // on with what came of its calls.
  constructor(record, { title, say, again = null, reply }) {
    this.record = record;
    this.title = title;
    this.say = say;
    this.reply = reply;
    this.timing = { asked: performance.now(), first: null, last: null, before: 0 };
    this.same = 0;
    this.comparison = null;
    const id = `answer-${++ids}`;
    this.text = element("div", {
      className: record.nudging ? "text" : "text alone",
      tabIndex: 0,
      role: "group",
      "aria-label": `${title}: the answer, piece by piece, with the arrow keys`,
    });
    this.status = element("span", { className: "status", text: "waiting" });
    this.remedy = element("p", { className: "remedy", hidden: true });
    this.trouble = element("p", { className: "trouble", role: "alert", hidden: true });
    this.figures = element("dl", { className: "figures" });
    this.svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    this.svg.setAttribute("role", "img");
    this.plotBox = element("details", { className: "plot", open: true });
    this.plotBox.append(
      element("summary", { text: "p1 along the answer" }),
      element("figure", {}, this.svg),
    );
    this.actions = element("div", { className: "actions", hidden: true });
    this.root = element(
      "article",
      { className: "answer", "aria-labelledby": id, "aria-busy": "true" },
      element("header", {}, element("h3", { id, text: title }), this.status),
      this.text,
      this.remedy,
      this.trouble,
      this.figures,
      this.plotBox,
      this.actions,
    );
    // What can be pointed at.
    this.view = { pieces: [], end: null, gamma: record.gamma, grammar: hasGrammar(record) };
    this.inspector = inspect(this.text, this.view, {
      say,
      shown: (at) => this.drawn?.point(at),
    });
    this.plotBox.hidden = !record.nudging || record.policy.trace === "rounds";
    this.#listen();
    if (again) this.#whatIf(again);
  }

  #listen() {
    new ResizeObserver(() => this.#draw()).observe(this.plotBox);
    this.svg.addEventListener("pointermove", (event) => {
      const at = this.drawn.pieceAt(event.clientX - this.svg.getBoundingClientRect().left);
      if (at < 0) this.inspector.hide();
      else this.inspector.show(at);
    });
    this.svg.addEventListener("pointerleave", () => this.inspector.hide());
    const action = (text, act) => {
      const button = element("button", { type: "button", text });
      button.addEventListener("click", () => act(button));
      this.actions.append(button);
      return button;
    };
    action("Copy", (button) => this.#copy(button));
    this.exports = [
      action("Save trace", () => {
        const trace = JSON.stringify(stored(this.record), null, 1);
        download(trace, "application/json", "json");
      }),
      action("Save page", async () => {
        try {
          download(await this.page(), "text/html", "html");
        } catch (error) {
          this.fail(error.message);
        }
      }),
    ];
  }

  // -- while it is written ---------------------------------------------------------------------

  // New pieces are in the record.
  update() {
    const { timing, record } = this;
    if (record.pieces.length > this.view.pieces.length) {
      timing.last = performance.now();
      if (timing.first === null) {
        timing.first = timing.last;
        timing.before = record.usage?.completion_tokens ?? 0;
        this.status.textContent = "writing";
      }
      this.#append();
    }
    this.#count();
    this.#draw();
  }

  // how: "" where it came to its end, or "stopped".
  end(how = "") {
    this.root.setAttribute("aria-busy", "false");
    const whole = this.record.finish_reason !== null;
    if (whole) this.#degraded();
    this.status.textContent = how || (whole ? ended(this.record) : "");
    this.remedy.textContent = whole && !how ? remedy(this.record) : "";
    this.remedy.hidden = !this.remedy.textContent;
    const calls = this.record.finish_reason === "tool_calls" ? answerable(this.record) : [];
    if (calls.length) {
      this.text.after(resultsForm(calls, (results) => this.reply(this, results)));
    }
    if (this.record.text && !this.view.pieces.length) this.#append();
    this.view.end = this.record.rejected;
    this.actions.hidden = this.record.text === "" && !whole;
    for (const button of this.exports) button.hidden = !whole || !this.record.usage;
    if (this.whatIf) this.whatIf.hidden = !whole;
    this.#count();
    this.#draw();
  }

  fail(message) {
    this.end("failed");
    this.trouble.textContent = message;
    this.trouble.hidden = false;
  }

  // With a dead base engine the aligned model may answer alone; its usage then names one model.
  #degraded() {
    const { record } = this;
    if (!record.nudging || !record.usage || record.usage.nudging) return;
    Object.assign(record, { nudging: null, policy: null, gamma: null });
    this.view.gamma = null;
    this.plotBox.hidden = true;
    this.whatIf?.remove();
    this.note("The base engine is dead: the aligned model answered alone.");
  }

  // Something that has to be said of it, and is no failure.
  note(message) {
    this.text.after(element("p", { className: "told", role: "status", text: message }));
  }

  // Its first characters are known to be those of another answer, and are shown as such.
  share(length) {
    this.same = length;
    this.#shared(0);
  }

  #append() {
    const pieces = shownPieces(this.record);
    const from = this.view.pieces.length;
    grow(this.text, sections(this.record.parts, pieces), from);
    this.view.pieces = [...pieces];
    this.#shared(from);
  }

  // Marks what is the same, from a piece on.
  #shared(from) {
    const { pieces } = this.view;
    let length = pieces.slice(0, from).reduce((sum, { text }) => sum + text.length, 0);
    for (let at = from; at < pieces.length; at++) {
      length += pieces[at].text.length;
      const span = this.text.querySelector(`[data-piece="${at}"]`);
      span?.classList.toggle("same", length <= this.same);
    }
  }

  // What the counters say, as [value, name].
  counts() {
    const { usage } = this.record;
    const { asked, first, last, before } = this.timing;
    const told = [];
    const tokens = usage?.completion_tokens ?? 0;
    const nudging = usage?.nudging;
    if (nudging) {
      told.push([percent(nudging.nudged_share), "nudged"]);
      told.push([String(nudging.rounds), nudging.rounds === 1 ? "round" : "rounds"]);
    }
    if (usage) told.push([String(tokens), tokens === 1 ? "token" : "tokens"]);
    if (first !== null && last > first && tokens > before) {
      told.push([((1000 * (tokens - before)) / (last - first)).toFixed(0), "tokens/s"]);
    }
    if (first !== null) told.push([`${((first - asked) / 1000).toFixed(2)} s`, "to first text"]);
    if (nudging && tokens) {
      told.push([(nudging.base_steps / tokens).toFixed(2), "base steps/token"]);
    }
    return told;
  }

  #count() {
    const rows = this.counts();
    // Reused, so that only the digits change while an answer is written.
    const shown = this.figures.children;
    while (shown.length < rows.length) {
      this.figures.append(element("div", {}, element("dt"), element("dd")));
    }
    while (shown.length > rows.length) this.figures.lastChild.remove();
    rows.forEach(([value, name], at) => {
      const [term, figure] = this.figures.children[at].children;
      term.textContent = name;
      figure.textContent = value;
    });
  }

  #draw() {
    const width = this.svg.parentElement.clientWidth;
    if (this.plotBox.hidden || !this.plotBox.open || !width) return;
    const { pieces, rejected, gamma } = this.record;
    const other = this.comparison?.gamma ?? null;
    this.drawn = plot(this.svg, { pieces, end: rejected, gamma, other }, width);
  }

  // -- another γ -------------------------------------------------------------------------------

  #whatIf(again) {
    const id = `whatif-${ids}`;
    const range = element("input", { type: "range", id, min: 0, max: 1.01, step: 0.01 });
    range.value = this.record.gamma;
    const value = element("output", { htmlFor: id, text: this.record.gamma.toFixed(2) });
    const told = element("p", { className: "told" });
    const button = element("button", { type: "button", text: "Write it anew", hidden: true });
    this.whatIf = element(
      "div",
      { className: "whatif", hidden: true },
      element("label", { htmlFor: id, text: "What if γ were" }),
      element("div", { className: "pair" }, range, value),
      told,
      button,
    );
    this.root.append(this.whatIf);
    range.addEventListener("input", () => {
      const gamma = Number(range.value);
      value.textContent = gamma.toFixed(2);
      this.suppose(gamma);
      told.textContent = this.comparison ? this.outcome() : "";
      button.hidden = !this.comparison;
      button.textContent = `Write it at γ ${gamma.toFixed(2)}`;
    });
    range.addEventListener("change", () => this.say(told.textContent));
    button.addEventListener("click", () => again(this, Number(range.value)));
  }

  // Marks where the decisions at γ' would be others; at its own γ nothing.
  suppose(gamma) {
    const { pieces, rejected, nudging } = this.record;
    this.comparison =
      gamma === nudging.gamma
        ? null
        : compare(pieces, rejected, { ...nudging, recorded: nudging.gamma, gamma });
    const flips = this.comparison?.flips ?? [];
    const flipped = new Set(flips.map((flip) => flip.piece));
    const first = flips.length ? flips[0].piece : Infinity;
    for (const span of spansOf(this.text)) {
      const at = Number(span.dataset.piece);
      span.classList.toggle("flip", flipped.has(at));
      span.classList.toggle("first", at === first);
      span.classList.toggle("after", at > first);
    }
    this.#draw();
  }

  // What the comparison says, in a sentence or two.
  outcome() {
    const { flips, positions, gamma } = this.comparison;
    const at = `At γ ${gamma.toFixed(2)}`;
    if (!flips.length) return `${at}, all ${positions} recorded decisions stay as they are.`;
    const { change, text, top_prob, piece } = flips[0];
    if (change === "asked") {
      return `${at}, the base model would be asked from here on; the trace can't say what it writes.`;
    }
    const token = `“${text.trim() || text}” (p1 ${top_prob.toFixed(2)})`;
    const what =
      change === "rejected"
        ? `the base model’s ${token} would give way to a nudge`
        : piece === this.record.pieces.length
          ? `the base model would go on with ${token} instead of the end`
          : `the base model’s ${token} would stand instead of the nudge`;
    const others = `${flips.length} of ${positions} recorded decisions would be others.`;
    return `${at}, ${others} First, ${what}. Up to there the text is the same.`;
  }

  // -- what can be done with it ----------------------------------------------------------------

  async #copy(button) {
    const said = message(this.record);
    const done = await copied(said ? spoken(said) : this.record.text);
    button.textContent = done ? "Copied" : "Could not copy";
    this.say(button.textContent);
    setTimeout(() => (button.textContent = "Copy"), 1500);
  }

  page() {
    const wide = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    wide.setAttribute("role", "img");
    const { pieces, rejected, gamma } = this.record;
    const drawn = !this.plotBox.hidden;
    if (drawn) plot(wide, { pieces, end: rejected, gamma }, 640);
    const title = titleOf(this.record);
    return exportPage(this.record, {
      plot: drawn ? new XMLSerializer().serializeToString(wide) : "",
      figures: this.counts(),
      title,
    });
  }
}

// Who answers, and by which threshold.
export function titleOf({ request, nudging, policy }) {
  const { model } = request;
  if (!nudging) return model.includes(":") ? `${model}, alone` : model;
  const { threshold } = policy;
  if (!threshold) return `${model}, ${nudging.policy}`;
  const symbol = threshold === "gamma" ? "γ" : threshold;
  return `${model}, ${symbol} ${nudging[threshold].toFixed(2)}`;
}

async function copied(text) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    // Pages without TLS have no clipboard but this old way.
    const field = element("textarea", { value: text, className: "unseen" });
    document.body.append(field);
    field.select();
    const done = document.execCommand("copy");
    field.remove();
    return done;
  }
}

function download(content, type, ending) {
  const address = URL.createObjectURL(new Blob([content], { type }));
  const stamp = new Date().toISOString().slice(0, 19).replaceAll(":", "");
  element("a", { href: address, download: `nudge-${stamp}.${ending}` }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}
