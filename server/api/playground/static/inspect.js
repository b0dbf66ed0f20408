// Pointing at a piece of an answer: by mouse, by tap, or with the arrow keys. An exported page
// holds a copy of this file, so it imports nothing.

const number = (p) => (p >= 0.9995 && p < 1 ? p.toFixed(5) : p.toFixed(3));
const quoted = (text) => `“${text.replaceAll("\n", "⏎")}”`;

// What there is to say about a piece, as [name, value] pairs. end: what the base model would have
// written behind the last one. gamma: null where one model wrote the whole answer. grammar: whether one
// decided, too.
export function facts({ pieces, end = null, gamma, grammar }, at) {
  const piece = pieces[at];
  const told = [["", piece.speaker === "base" ? "Base model" : "Aligned model"]];
  if (piece.top_prob === undefined) return told;
  const limit = gamma === null || grammar ? null : gamma;
  if (piece.speaker === "base") {
    const p1 = number(piece.top_prob);
    told.push(["p1", gamma === null ? p1 : `${p1} ≥ γ ${gamma.toFixed(2)}`]);
  } else {
    if (piece.rejected) {
      told.push(...instead("instead of", piece.rejected, pieces.slice(0, at), limit));
    } else if (gamma !== null) {
      told.push(["base model", "not asked here"]);
    }
    told.push(["its top-1", number(piece.top_prob)]);
  }
  if (end && at === pieces.length - 1) told.push(...instead("ended before", end, pieces, limit));
  return told;
}

// A token of the base model that the answer hasn't got.
function instead(name, { text, top_prob }, pieces, gamma) {
  const p1 = number(top_prob);
  if (text === "") return [[name, "the base model’s end of text"], ["p1", p1]];
  const told = [[name, quoted(text)]];
  if (gamma === null) return [...told, ["p1", p1]];
  const sure = top_prob >= gamma;
  told.push(["p1", `${p1} ${sure ? "≥" : "<"} γ ${gamma.toFixed(2)}`]);
  return sure ? [...told, ["gave way here", reason(pieces, text)]] : told;
}

// Why a base model gave way that was sure (docs/policies.md). A trace doesn't say it, but the texts do:
// what has come round, a line that was about to end, or else what stands in front of a next turn.
function reason(pieces, text) {
  if (/\n\s*\S/.test(text)) return "the next turn’s header";
  if (comesAgain(pieces.map((piece) => piece.text).join(""))) return "it repeated itself";
  return text.startsWith("\n") ? "the end of a line" : "the next turn’s header";
}

// As server/decoding/loops.py tells: the same sentences twice in a row, or the same phrase or tokens
// three times.
function comesAgain(text) {
  const sentences = text
    .split(/(?<=[.!?])(?=\s)|(?<=[。！？])|\n/)
    .map((sentence) => sentence.replace(/[^\p{L}\p{N}]/gu, "").toLowerCase())
    .filter((letters) => new TextEncoder().encode(letters).length >= 12);
  for (let length = 1; length <= 6 && 2 * length <= sentences.length; length++) {
    const last = sentences.slice(-length).join("\n");
    if (sentences.slice(-2 * length, -length).join("\n") === last) return true;
  }
  for (let length = 5; length <= 512 && 3 * length <= text.length; length++) {
    if (text.endsWith(text.slice(-length).repeat(3))) return true;
  }
  return false;
}

let tip = null;

function tipOf(document) {
  if (tip === null) {
    tip = document.createElement("div");
    tip.className = "tip";
    tip.hidden = true;
    tip.setAttribute("role", "tooltip");
    document.body.append(tip);
  }
  return tip;
}

// text: the element with the pieces (`.piece[data-piece]`). record: as `facts` reads it; it may
// grow. say: tells a screen reader. Returns {show, hide}.
export function inspect(text, record, { say = () => {}, shown = () => {} } = {}) {
  let current = -1;

  function hide() {
    text.querySelector(".current")?.classList.remove("current");
    tipOf(document).hidden = true;
    shown(-1);
  }

  function show(at, aloud = false) {
    const piece = record.pieces[at];
    const span = text.querySelector(`[data-piece="${at}"]`);
    if (!piece || !span) return;
    hide();
    const fold = span.closest("details");
    if (aloud && fold) fold.open = true;
    current = at;
    span.classList.add("current");
    const told = facts(record, at);
    const box = tipOf(document);
    box.replaceChildren();
    for (const [name, value] of told) {
      const line = document.createElement("div");
      const label = document.createElement("span");
      label.textContent = name;
      const content = document.createElement(name ? "span" : "strong");
      content.textContent = value;
      line.append(...(name ? [label, content] : [content]));
      box.append(line);
    }
    box.hidden = false;
    place(box, span);
    shown(at);
    if (aloud) {
      span.scrollIntoView({ block: "nearest" });
      say([quoted(piece.text.trim()), ...told.map((pair) => pair.join(" "))].join(", "));
    }
  }

  function next(step) {
    const last = record.pieces.length - 1;
    return Math.min(last, Math.max(0, current + step));
  }

  // The next piece of the aligned model in a direction, or the one at hand.
  function nudge(step) {
    for (let at = current + step; at >= 0 && at < record.pieces.length; at += step) {
      if (record.pieces[at].speaker === "aligned") return at;
    }
    return Math.max(0, current);
  }

  const keys = {
    ArrowRight: () => next(1),
    ArrowLeft: () => next(-1),
    ArrowDown: () => nudge(1),
    ArrowUp: () => nudge(-1),
    Home: () => 0,
    End: () => record.pieces.length - 1,
  };

  const pieceOf = (event) => event.target.closest?.("[data-piece]");

  text.addEventListener("pointerover", (event) => {
    const span = pieceOf(event);
    if (span && event.pointerType === "mouse") show(Number(span.dataset.piece));
  });
  text.addEventListener("pointerleave", (event) => {
    if (event.pointerType === "mouse") hide();
  });
  text.addEventListener("click", (event) => {
    const span = pieceOf(event);
    if (span) show(Number(span.dataset.piece));
  });
  text.addEventListener("focus", () => {
    if (text.matches(":focus-visible") && record.pieces.length) show(Math.max(0, current), true);
  });
  text.addEventListener("blur", hide);
  text.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !record.pieces.length) return;
    if (event.key === "Escape" && !tipOf(document).hidden) {
      hide();
      event.stopPropagation(); // it has done its work here, and stops no answer
    } else if (event.key in keys) {
      event.preventDefault();
      show(keys[event.key](), true);
    }
  });
  const follow = () => {
    const span = text.querySelector(".current");
    if (span) place(tipOf(document), span);
  };
  addEventListener("scroll", follow, { passive: true });
  addEventListener("resize", follow, { passive: true });
  return { show, hide };
}

function place(box, span) {
  const gap = 8;
  const folded = span.closest("details:not([open])")?.querySelector("summary");
  const at = (folded ?? span.querySelector(".ink") ?? span).getClientRects()[0];
  if (!at) return;
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - width - gap);
  const below = at.bottom + gap;
  const top = below + height > innerHeight ? at.top - height - gap : below;
  box.style.left = `${Math.max(gap, left)}px`;
  box.style.top = `${Math.max(gap, top)}px`;
}
