// What a recorded answer says about another γ: the same function as server/decoding/whatif.py, where it is
// explained. Both are held to tests/whatif.json.

const taken = (token, recorded, gamma) =>
  token.text !== "" && token.top_prob >= gamma && token.top_prob < recorded;

// Whether it would have ended a line that isn't empty, with nothing in front.
function endsLine(pieces, token) {
  const last = pieces.map((piece) => piece.text).join("").replace(/[ \t]+$/, "");
  return token.text.startsWith("\n") && last !== "" && !last.endsWith("\n");
}

// pieces, end: of a trace (end: its `rejected`, or null). recorded: its γ. start, end_check: its own.
export function compare(pieces, end, { recorded, start, end_check, gamma }) {
  const flips = [];
  let positions = 0;
  const flip = (piece, change, token) =>
    flips.push({
      piece,
      change,
      text: token ? token.text : null,
      top_prob: token ? token.top_prob : null,
    });
  if (recorded > 1 && gamma <= 1) {
    // The pieces are the aligned model's words, and the base model comes after the first.
    for (let at = start === "base" ? 0 : 1; at <= pieces.length; at++) flip(at, "asked", null);
    positions = flips.length;
  } else {
    pieces.forEach((piece, at) => {
      if (piece.speaker === "base") {
        positions++;
        if (piece.top_prob < gamma) flip(at, "rejected", piece);
      } else if (piece.rejected) {
        positions++;
        if (taken(piece.rejected, recorded, gamma)) flip(at, "taken", piece.rejected);
      }
    });
    if (end) {
      positions++;
      const checked = end_check === "newline" && endsLine(pieces, end);
      if (taken(end, recorded, gamma) && !checked) flip(pieces.length, "taken", end);
    }
  }
  const same = flips.length ? flips[0].piece : pieces.length;
  const prefix = pieces.slice(0, same).map((piece) => piece.text).join("");
  return { gamma, flips, prefix, positions };
}
