// What came of an answer's calls, to be told by whoever reads it. Knows calls of parts.js.

import { element } from "./element.js";

let ids = 0;

// A form with a field a call; send(messages) gets those of role "tool".
export function resultsForm(calls, send) {
  const fields = calls.map(({ id, name }) => {
    const field = element("textarea", {
      id: `result-${++ids}`,
      rows: 1,
      required: true,
      spellcheck: false,
    });
    const label = element("label", { htmlFor: field.id, text: `Result of ${name}` });
    return { id, field, row: element("div", { className: "field" }, label, field) };
  });
  const form = element(
    "form",
    { className: "results", autocomplete: "off" },
    ...fields.map(({ row }) => row),
    element("button", { type: "submit", text: calls.length > 1 ? "Send results" : "Send result" }),
  );
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    send(fields.map(({ id, field }) => ({ role: "tool", tool_call_id: id, content: field.value })));
  });
  return form;
}
