// p1 along an answer, as a small SVG: a dot where the base model wrote, a hollow diamond where it
// gave way, and γ. Shapes differ, not only colours. Knows nothing of how an answer comes about.

const NS = "http://www.w3.org/2000/svg";
const HEIGHT = 120;
const EDGE = { left: 30, right: 52, top: 10, bottom: 16 };
const STEP = 14; // no wider, so that a short answer grows from left to right

function make(name, attributes, text) {
  const element = document.createElementNS(NS, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

const y = (p) => EDGE.top + (1 - Math.min(p, 1)) * (HEIGHT - EDGE.top - EDGE.bottom);

// The base model's p1 at each position: [index of the piece, p1, whether it wrote].
export function positions(pieces, end) {
  const found = [];
  pieces.forEach((piece, at) => {
    if (piece.speaker === "base") found.push([at, piece.top_prob, true]);
    else if (piece.rejected) found.push([at, piece.rejected.top_prob, false]);
  });
  if (end) found.push([pieces.length, end.top_prob, false]);
  return found;
}

// Draws into svg. other: a second γ, or null. Returns which piece is at an x of the picture.
export function plot(svg, { pieces, end, gamma, other = null }, width) {
  const inner = Math.max(1, width - EDGE.left - EDGE.right);
  const count = pieces.length + (end ? 1 : 0);
  const step = Math.min(STEP, inner / Math.max(1, count));
  const x = (at) => EDGE.left + (at + 0.5) * step;
  const right = EDGE.left + inner;
  const known = positions(pieces, end);
  svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
  svg.setAttribute("width", width);
  svg.setAttribute("height", HEIGHT);
  svg.setAttribute("aria-label", summary(known, gamma));

  const parts = [];
  for (const p of [0, 0.5, 1]) {
    parts.push(make("line", { class: "grid", x1: EDGE.left, x2: right, y1: y(p), y2: y(p) }));
    parts.push(
      make("text", { class: "tick", x: EDGE.left - 8, y: y(p) + 4, "text-anchor": "end" }, p),
    );
  }
  const line = (value, kind, aside = 0) => {
    if (value === null || value > 1) return;
    const at = y(value);
    parts.push(make("line", { class: kind, x1: EDGE.left, x2: right, y1: at, y2: at }));
    const label = `γ ${value.toFixed(2)}`;
    parts.push(make("text", { class: `label ${kind}`, x: right + 6, y: at + 4 + aside }, label));
  };
  // Two labels must not lie on each other.
  const room = other === null || gamma > 1 ? 12 : Math.abs(y(other) - y(gamma));
  const aside = Math.max(0, 12 - room) * (other > gamma ? -1 : 1);
  line(gamma, "gamma");
  if (other !== gamma) line(other, "other", aside);

  const base = known.filter(([, , wrote]) => wrote).map(([at, p]) => `M${x(at)} ${y(p)}h0`);
  const gave = known
    .filter(([, , wrote]) => !wrote)
    .map(([at, p]) => `M${x(at)} ${y(p) - 4}l4 4l-4 4l-4 -4z`);
  const floor = HEIGHT - EDGE.bottom + 7;
  const nudges = pieces.flatMap((piece, at) =>
    piece.speaker === "aligned" ? [`M${x(at) - step * 0.4} ${floor}h${step * 0.8}`] : [],
  );
  for (const [kind, path] of [["nudges", nudges], ["took", base], ["gave", gave]]) {
    if (path.length) parts.push(make("path", { class: kind, d: path.join("") }));
  }
  const cursor = make("line", { class: "cursor", y1: EDGE.top, y2: floor, visibility: "hidden" });
  parts.push(cursor);
  svg.replaceChildren(...parts);

  return {
    pieceAt(px) {
      const at = Math.floor((px - EDGE.left) / step);
      return at >= 0 && at < pieces.length ? at : -1;
    },
    point(at) {
      cursor.setAttribute("visibility", at < 0 ? "hidden" : "visible");
      if (at < 0) return;
      cursor.setAttribute("x1", x(at));
      cursor.setAttribute("x2", x(at));
    },
  };
}

function summary(known, gamma) {
  if (!known.length) return "Plot of p1; no position yet";
  const lowest = Math.min(...known.map(([, p]) => p));
  const gave = known.filter(([, , wrote]) => !wrote).length;
  const threshold = gamma === null ? "" : `; γ is ${gamma.toFixed(2)}`;
  return (
    `Plot of the base model’s p1 at ${known.length} positions: lowest ${lowest.toFixed(2)}, ` +
    `it gave way at ${gave}${threshold}`
  );
}
