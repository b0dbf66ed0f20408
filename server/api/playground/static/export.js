// A trace as a page of its own: one file, which opens without a network and asks nobody anything.

import { inks, sections, spoken, textOfPart, titleOfPart } from "./parts.js";
import { hasGrammar, shownPieces } from "./trace.js";

const ESCAPES = { "&": "&amp;", "<": "&lt;", ">": "&gt;", '"': "&quot;", "'": "&#39;" };
const escaped = (text) => String(text).replace(/[&<>"']/g, (found) => ESCAPES[found]);
// In a script element nothing but "<" can end the script.
const json = (value) => JSON.stringify(value).replaceAll("<", "\\u003c");

async function file(name) {
  const response = await fetch(new URL(name, import.meta.url));
  if (!response.ok) throw new Error(`${name} could not be read from the server`);
  return response.text();
}

function span({ at, text, speaker, name }, part) {
  const runs = inks(text, part).map((run) =>
    run.ink ? `<span class="ink">${escaped(run.text)}</span>` : escaped(run.text),
  );
  const names = escaped(`piece ${speaker}${name ? " name" : ""}`);
  return `<span class="${names}" data-piece="${at}">${runs.join("")}</span>`;
}

function section({ part, pieces }) {
  const inner = pieces.map((each) => span(each, part)).join("") || escaped(textOfPart(part));
  if (part.type === "content") return inner;
  return (
    `<details class="part ${escaped(part.type)}"><summary>${escaped(titleOfPart(part))}</summary>` +
    `<div class="inner">${inner}</div></details>`
  );
}

// plot: the SVG's markup. figures: [value, name] pairs, as the page shows them.
export async function exportPage(record, { plot, figures, title }) {
  const [style, script] = await Promise.all([file("answer.css"), file("inspect.js")]);
  const pieces = shownPieces(record);
  // No other script than these two can run, whatever a model wrote.
  const bytes = crypto.getRandomValues(new Uint8Array(16));
  const nonce = Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");
  const policy =
    `default-src 'none'; style-src 'nonce-${nonce}'; script-src 'nonce-${nonce}'; ` +
    "base-uri 'none'; form-action 'none'";
  const messages = record.request.messages.map(
    (each) =>
      `<div class="message"><h2>${escaped(each.role)}</h2><p>${escaped(spoken(each))}</p></div>`,
  );
  const answer = sections(record.parts, pieces).map(section).join("");
  const counted = figures.map(
    ([value, name]) => `<div><dt>${escaped(name)}</dt><dd>${escaped(value)}</dd></div>`,
  );
  const { rejected: end, gamma } = record;
  const view = { pieces, end, gamma, grammar: hasGrammar(record) };
  const start =
    `inspect(document.querySelector(".text"), ${json(view)}, ` +
    `{ say: (text) => { document.querySelector("#news").textContent = text; } });`;
  return `<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy" content="${policy}">
<title>${escaped(title)}</title>
<style nonce="${nonce}">
${style}
</style>
</head>
<body class="sheet">
<main>
<h1>${escaped(title)}</h1>
${messages.join("\n")}
<div class="message"><h2>answer</h2>
<div class="text" tabindex="0" role="group" aria-label="The answer, piece by piece: arrow keys">${answer}</div></div>
<dl class="figures">${counted.join("")}</dl>
<figure class="plot">${plot}</figure>
<p class="hint">Underlined: written by the aligned model. Plain: by the base model. Point at a word
for its numbers. ${escaped(new Date(record.created * 1000).toISOString())}, ${escaped(record.server)}</p>
<p id="news" class="unseen" role="status"></p>
</main>
<script type="module" nonce="${nonce}">
${script}
${start}
</script>
</body>
</html>
`;
}
