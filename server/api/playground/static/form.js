// The form of the settings: what it shows of a served model, what it says of a request, and a stored
// answer's own settings back in it. Knows cards and records; does not know how to ask a server.

import { element } from "./element.js";

export const at = (id) => document.getElementById(id);

// The fields of the settings that have some; a policy listens to those that its card names.
const FIELDS = {
  gamma: ["gamma", "gamma-number"],
  entropy: ["entropy"],
  start: ["start"],
  end_lookahead: ["lookahead"],
  end_check: ["end-check"],
};

at("gamma").addEventListener("input", () => (at("gamma-number").value = at("gamma").value));
at("gamma-number").addEventListener("input", () => (at("gamma").value = at("gamma-number").value));
at("settings").addEventListener("submit", (event) => event.preventDefault());

function number(id, fallback) {
  const value = at(id).valueAsNumber;
  return Number.isFinite(value) ? value : fallback;
}

// A served model's own settings.
export function show(card) {
  const names = Object.keys(card.policies ?? {});
  at("policy").replaceChildren(
    ...names.map((name) => element("option", { value: name, text: name })),
  );
  at("policy-field").hidden = names.length < 2;
  at("temperature").value = card.sampling.temperature;
  if (card.nudging) put(card.nudging);
  listen(card);
  at("gamma-hint").textContent = card.nudging
    ? `This model’s own: ${card.nudging.gamma.toFixed(2)}. Over 1 the aligned model writes all.`
    : "One model alone: nothing is nudged.";
}

function put({ gamma, entropy, start, end_lookahead, end_check, policy }) {
  at("gamma").value = gamma;
  at("gamma-number").value = gamma;
  at("entropy").value = entropy;
  at("start").value = start;
  at("lookahead").value = end_lookahead;
  at("end-check").value = end_check;
  at("policy").value = policy;
}

// The fields of the chosen policy's settings; others have no place. One model alone shows by γ that
// there is none.
export function listen(card) {
  const { settings = [] } = card?.policies?.[at("policy").value] ?? {};
  for (const [setting, ids] of Object.entries(FIELDS)) {
    const listens = settings.includes(setting);
    for (const id of ids) at(id).disabled = !listens;
    const stays = setting === "gamma" && !card?.nudging;
    at(ids[0]).closest(".field").hidden = !listens && !stays;
  }
}

// `nudging` of an answer by a served model, with all settings; null where it is one model alone.
export function settings(card) {
  if (!card.nudging) return null;
  return {
    ...card.nudging,
    policy: at("policy").value,
    entropy: number("entropy", card.nudging.entropy),
    gamma: number("gamma-number", card.nudging.gamma),
    start: at("start").value,
    end_lookahead: number("lookahead", card.nudging.end_lookahead),
    end_check: at("end-check").value,
  };
}

// The fields of a request beside its model and messages.
export function sampled({ sampling }) {
  const most = number("max-tokens", null);
  const stop = at("stops").value.split("\n").filter(Boolean).map(unescaped);
  return {
    ...sampling,
    temperature: number("temperature", sampling.temperature),
    ...(most === null ? {} : { max_tokens: most }),
    ...(stop.length ? { stop } : {}),
    ...offered(),
  };
}

// Tools as they are put in; throws an Error that says what is wrong with them.
function offered() {
  const source = at("tools").value.trim();
  if (!source) return {};
  let tools;
  try {
    tools = JSON.parse(source);
  } catch (error) {
    throw new Error(`This is no JSON: ${error.message}`);
  }
  if (!Array.isArray(tools)) throw new Error("This is no list: put [ ] around the tools.");
  tools.forEach((tool, number) => {
    if (typeof tool?.function?.name === "string") return;
    throw new Error(`Tool ${number + 1} has no function with a name.`);
  });
  if (!tools.length) return {};
  const choice = at("tool-choice").value;
  return { tools, tool_choice: choice.startsWith("{") ? JSON.parse(choice) : choice };
}

// Whether the tools can be sent; says at their field why not.
export function toolsFit() {
  const told = at("tools-trouble");
  let wrong = "";
  try {
    offered();
  } catch (error) {
    wrong = error.message;
    at("more").open = at("tools-more").open = true;
    at("tools").focus();
  }
  told.textContent = wrong;
  told.hidden = !wrong;
  at("tools").setAttribute("aria-invalid", String(!!wrong));
  return !wrong;
}

function offer({ tools, tool_choice = "auto" }) {
  at("tools").value = tools?.length ? JSON.stringify(tools, null, 1) : "";
  at("tools-more").open = !!tools?.length;
  // A tool by name is a choice of that trace's alone.
  const value = typeof tool_choice === "string" ? tool_choice : JSON.stringify(tool_choice);
  if (![...at("tool-choice").options].some((each) => each.value === value)) {
    at("tool-choice").append(element("option", { value, text: value }));
  }
  at("tool-choice").value = value;
  toolsFit();
}

// A stored answer's own settings, where its model's are shown. What its request left out was the
// model's; without a limit there was none.
export function restore({ request, nudging }, card) {
  at("temperature").value = request.temperature ?? card.sampling.temperature;
  at("max-tokens").value = request.max_completion_tokens ?? request.max_tokens ?? "";
  at("stops").value = [request.stop ?? []].flat().map(escaped).join("\n");
  offer(request);
  if (!nudging || !card.nudging) return;
  const policy = card.policies[nudging.policy] ? nudging.policy : card.nudging.policy;
  // An older trace has no end check: there was none.
  put({ ...card.nudging, end_check: "off", ...nudging, policy });
  listen(card);
}

// A stop string on a line of its own.
const LETTERS = { "\\": "\\", "\n": "n", "\r": "r" };
const escaped = (text) => text.replace(/[\\\n\r]/g, (found) => `\\${LETTERS[found]}`);
const unescaped = (line) =>
  line.replace(/\\([\\nr])/g, (_, letter) => ({ n: "\n", r: "\r" })[letter] ?? letter);
