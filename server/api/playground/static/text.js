// The text of an answer, by speaker; thoughts and calls are folded. Knows sections of parts.js.

import { element } from "./element.js";
import { inks, textOfPart, titleOfPart } from "./parts.js";

// Puts in what comes from a piece on; where nothing is known of who wrote it, the text alone.
export function grow(root, sections, from) {
  if (!from) root.replaceChildren();
  const known = sections.some(({ pieces }) => pieces.length);
  sections.forEach(({ part, pieces }, number) => {
    const fresh = pieces.filter(({ at }) => at >= from);
    if (known && !fresh.length) return;
    const into = part.type === "content" ? root : folded(root, part, number);
    into.append(...(known ? fresh.map((each) => span(each, part)) : [textOfPart(part)]));
  });
}

function folded(root, part, number) {
  const found = root.querySelector(`[data-part="${number}"] .inner`);
  if (found) return found;
  const inner = element("div", { className: "inner" });
  root.append(
    element(
      "details",
      { className: `part ${part.type}`, "data-part": number },
      element("summary", { text: titleOfPart(part) }),
      inner,
    ),
  );
  return inner;
}

function span({ at, text, speaker, name }, part) {
  const runs = inks(text, part).map((run) =>
    run.ink ? element("span", { className: "ink", text: run.text }) : run.text,
  );
  const className = `piece ${speaker}${name ? " name" : ""}`;
  return element("span", { className, "data-piece": at }, ...runs);
}

export const spansOf = (root) => root.querySelectorAll(".piece");
