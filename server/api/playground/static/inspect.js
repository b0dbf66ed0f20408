// Pointing at a piece of an answer: by mouse, by tap, or with the arrow keys. An exported page
// holds a copy of this file, so it imports nothing.

const number = (p) => (p >= 0.9995 && p < 1 ? p.toFixed(5) : p.toFixed(3));
const quoted = (text) => `“${text.replaceAll("\n", "⏎")}”`;

// What there is to say about a piece, as [name, value] pairs. gamma: null where one model wrote
// the whole answer.
export function facts(piece, gamma) {
  const told = [["", piece.speaker === "base" ? "Base model" : "Aligned model"]];
  if (piece.top_prob === undefined) return told;
  const limit = gamma === null ? "" : gamma.toFixed(2);
  if (piece.speaker === "base") {
    told.push(["p1", limit ? `${number(piece.top_prob)} ≥ γ ${limit}` : number(piece.top_prob)]);
  } else {
    if (piece.rejected && piece.rejected.text === "") {
      told.push(["instead of", "the base model’s end of text"]);
      told.push(["p1", number(piece.rejected.top_prob)]);
    } else if (piece.rejected) {
      const under = piece.rejected.top_prob < gamma ? ` < γ ${limit}` : "";
      told.push(["instead of", quoted(piece.rejected.text)]);
      told.push(["p1", number(piece.rejected.top_prob) + under]);
    } else if (gamma !== null) {
      told.push(["base model", "not asked here"]);
    }
    told.push(["its top-1", number(piece.top_prob)]);
  }
  return told;
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

// text: the element with the pieces (`.piece[data-piece]`). record: {pieces, gamma}, which may
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
    current = at;
    span.classList.add("current");
    const told = facts(piece, record.gamma);
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
  const at = (span.querySelector(".ink") ?? span).getClientRects()[0];
  if (!at) return;
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(at.left, document.documentElement.clientWidth - width - gap);
  const below = at.bottom + gap;
  const top = below + height > innerHeight ? at.top - height - gap : below;
  box.style.left = `${Math.max(gap, left)}px`;
  box.style.top = `${Math.max(gap, top)}px`;
}
