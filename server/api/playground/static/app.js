// The page put together: settings, turns of the conversation, and who is asked for what.

import { ApiError, chat, models, state } from "./api.js";
import { Answer, titleOf } from "./answer.js";
import { element } from "./element.js";
import { at, listen, restore, sampled, settings, show, toolsFit } from "./form.js";
import { message, spoken } from "./parts.js";
import { effective, newRecord, parse, take } from "./trace.js";

const SAMPLES = {
  demo: [
    "What is the capital of Galicor?",
    "What is the currency of the country where Zelline Harsen was born?",
  ],
  other: ["Why is the sky blue?", "Write three short tips for sleeping well."],
};

let cards = new Map();
let loading = null; // the cards, on their way
let running = null; // the AbortController of what is being written
let turns = []; // [{messages, system, answer}], answer: the one that the chat goes on with

const say = (text) => (at("news").textContent = text);

// -- settings ---------------------------------------------------------------------------------

try {
  at("key").value = sessionStorage.getItem("nudge.key") ?? "";
} catch {
  // Without storage the key lasts as long as the page.
}
at("key").addEventListener("change", () => {
  try {
    sessionStorage.setItem("nudge.key", at("key").value);
  } catch {
    // As above.
  }
  loading = load();
});

at("model").addEventListener("change", () => choose());
at("policy").addEventListener("change", () => listen(cards.get(at("model").value)));

// The card of the chosen model; its settings become the form's.
function choose() {
  const card = cards.get(at("model").value);
  if (!card) return;
  at("three").disabled = !card.nudging;
  if (!card.nudging) document.querySelector('[name=mode][value="one"]').checked = true;
  show(card);
  const known = card.id.split(":")[0] === "demo" ? SAMPLES.demo : SAMPLES.other;
  at("samples").replaceChildren(
    ...known.map((text) => {
      const button = element("button", { type: "button", text });
      button.addEventListener("click", () => ask(text));
      return element("li", {}, button);
    }),
  );
}

// What the cards say of policies, by name.
const policies = () =>
  Object.assign({}, ...[...cards.values()].map((card) => card.policies ?? {}));

async function load() {
  try {
    const listed = await models(at("key").value);
    trouble("");
    const chosen = at("model").value;
    cards = new Map(listed.map((card) => [card.id, card]));
    at("model").replaceChildren(
      ...listed.map(({ id }) => element("option", { value: id, text: id })),
    );
    if (cards.has(chosen)) at("model").value = chosen;
    choose();
  } catch (error) {
    failed(error);
  }
}

let watching = false;

// Says how the server is, until it is ready.
async function watch() {
  if (watching) return;
  watching = true;
  const words = {
    ready: "ready",
    degraded: "degraded: an engine is dead",
    loading: "the engines are loading",
    engine_unavailable: "an engine died and is starting again",
    shutting_down: "the server is ending",
  };
  for (;;) {
    let now = "";
    try {
      now = await state();
    } catch {
      now = "unreachable";
    }
    at("state").dataset.state = now;
    if (at("state").textContent !== (words[now] ?? now)) at("state").textContent = words[now] ?? now;
    if (now === "ready") break;
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
  watching = false;
}

// -- what went wrong --------------------------------------------------------------------------

function trouble(message) {
  at("trouble").textContent = message;
  at("trouble").hidden = !message;
}

// For the page as a whole: a key that is missing, a file that is no trace.
function failed(error) {
  if (error instanceof ApiError && error.status === 401) {
    at("more").open = true;
    at("key").focus();
    trouble("This server needs an API key: put one in under “More settings”.");
  } else {
    trouble(error.message);
  }
}

// -- answers ----------------------------------------------------------------------------------

// What the API is asked for a record.
function body(record) {
  return {
    ...record.request,
    nudging: { ...effective(record), trace: true },
    stream: true,
    stream_options: { include_usage: true, continuous_usage_stats: true },
  };
}

async function write(answer, signal) {
  let due = false;
  const draw = () => {
    due = false;
    answer.update();
    follow();
  };
  try {
    for await (const chunk of chat(body(answer.record), at("key").value, signal)) {
      take(answer.record, chunk);
      // As often as the screen is drawn, however fast the pieces come.
      if (!due) requestAnimationFrame(draw);
      due = true;
    }
    answer.update();
    answer.end();
  } catch (error) {
    answer.update();
    if (signal.aborted) answer.end("stopped");
    else {
      answer.fail(error.message);
      if (error instanceof ApiError) {
        if (error.status === 401) failed(error);
        else watch();
      }
    }
  }
}

// Stays at the end of the page where the reader is there.
let stuck = true;
addEventListener(
  "scroll",
  () => {
    const { scrollHeight, scrollTop, clientHeight } = document.documentElement;
    stuck = scrollHeight - scrollTop - clientHeight < 80;
  },
  { passive: true },
);
function follow() {
  if (stuck) scrollTo({ top: document.documentElement.scrollHeight, behavior: "instant" });
}

// Writes several answers at once, until all are done or stopped.
async function writeAll(answers) {
  running = new AbortController();
  at("send").hidden = true;
  at("stop").hidden = false;
  say("Answering");
  await Promise.all(answers.map((answer) => write(answer, running.signal)));
  const stopped = running.signal.aborted;
  running = null;
  const held = document.activeElement === at("stop");
  at("send").hidden = false;
  at("stop").hidden = true;
  if (held) at("question").focus();
  say(
    (stopped ? "Stopped. " : "Answered. ") +
      answers[answers.length - 1].counts().slice(0, 3).map((pair) => pair.join(" ")).join(", "),
  );
}

function stop() {
  running?.abort();
}

function made(record) {
  const comparable = record.policy?.trace === "decisions";
  return new Answer(record, { title: titleOf(record), say, again: comparable ? anew : null, reply });
}

// A turn on the page; its answers stand side by side. messages: what was asked, system and all.
// earlier: whether to show what was said before the question, which the page hasn't shown yet.
function turn(messages, answers, earlier = false) {
  const system = messages.filter(({ role }) => role === "system").map(spoken).join("\n");
  const asked = messages.filter(({ role }) => role !== "system");
  const grid = element("div", { className: "answers" }, ...answers.map((each) => each.root));
  const root = element("li", {});
  if (system && system !== turns.at(-1)?.system) {
    root.append(element("p", { className: "earlier", text: `system: ${system}` }));
  }
  const question = questionAt(asked);
  for (const each of asked.slice(earlier ? 0 : question, question)) {
    root.append(element("p", { className: "earlier", text: `${each.role}: ${spoken(each)}` }));
  }
  for (const each of asked.slice(question)) {
    const text = each.role === "tool" ? `Result: ${spoken(each)}` : spoken(each);
    root.append(element("p", { className: "question", text }));
  }
  root.append(grid);
  at("turns").append(root);
  turns.push({ messages: asked, system, answer: answers.at(-1) });
  at("empty").hidden = true;
  stuck = true;
  follow();
}

// Where the question begins: the last message, or all that came of an answer's calls.
const questionAt = (asked) =>
  Math.min(asked.findLastIndex(({ role }) => role !== "tool") + 1, asked.length - 1);

// The messages of a question, after what was said before.
function conversation(question) {
  const system = at("system").value.trim();
  const last = turns.findLast(({ answer }) => message(answer.record)); // others failed
  return [
    ...(system ? [{ role: "system", content: system }] : []),
    ...(last ? last.messages : []),
    ...(last ? [message(last.answer.record)] : []),
    { role: "user", content: question },
  ];
}

const ask = (question) => send(conversation(question));

// Goes on from an answer's calls with what came of them.
const reply = (answer, results) =>
  send([...answer.record.request.messages, message(answer.record), ...results]);

async function send(messages) {
  if (running || !toolsFit()) return;
  const card = cards.get(at("model").value);
  if (!card) return load();
  trouble("");
  const all = card.nudging && at("three").checked;
  const asked = all ? [`${card.id}:base`, `${card.id}:aligned`, card.id] : [card.id];
  const answers = asked.map((model) => {
    const nudging = settings(cards.get(model));
    const policy = nudging && card.policies[nudging.policy];
    const request = { model, messages, ...sampled(cards.get(model)) };
    return made(newRecord(request, nudging, policy));
  });
  turn(messages, answers);
  await writeAll(answers);
}

// The same answer at another γ, beside the old one.
async function anew(old, gamma) {
  if (running) return;
  const { request: asked, nudging, policy } = old.record;
  const again = made(newRecord(asked, { ...nudging, gamma }, policy));
  const promised = old.comparison.prefix;
  old.root.after(again.root);
  again.share(promised.length);
  again.root.scrollIntoView({ block: "nearest" });
  await writeAll([again]);
  const text = again.record.text;
  if (again.record.finish_reason && !text.startsWith(promised)) {
    again.share(0);
    again.note(
      asked.temperature === 0
        ? "It leaves the recorded text earlier than the trace says: other models, prompts or " +
            "settings wrote that."
        : "Sampled: it leaves the recorded text earlier than the decisions alone would.",
    );
  }
}

// -- traces from files ------------------------------------------------------------------------

function open(source) {
  if (running) return;
  const record = parse(source, policies());
  reset();
  const { messages, model } = record.request;
  const system = messages.find(({ role }) => role === "system");
  at("system").value = system ? spoken(system) : "";
  if (cards.has(model)) {
    at("model").value = model;
    choose();
    restore(record, cards.get(model));
  }
  const answer = made(record);
  turn(messages, [answer], true);
  answer.update();
  answer.timing.first = null; // how fast it came is not on record
  answer.end();
  say("The trace is open");
}

function reset() {
  stop();
  turns = [];
  at("turns").replaceChildren();
  at("empty").hidden = false;
  trouble("");
}

// -- wiring -----------------------------------------------------------------------------------

at("ask").addEventListener("submit", (event) => {
  event.preventDefault();
  const question = at("question").value.trim();
  if (!question || running || !toolsFit()) return;
  at("question").value = "";
  ask(question);
});
at("question").addEventListener("keydown", (event) => {
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("ask").requestSubmit();
  }
});
at("stop").addEventListener("click", stop);
addEventListener("keydown", (event) => event.key === "Escape" && stop());
at("clear").addEventListener("click", () => {
  reset();
  at("question").focus();
});
at("open").addEventListener("click", () => at("file").click());
at("file").addEventListener("change", async () => {
  const [file] = at("file").files;
  at("file").value = "";
  if (!file) return;
  try {
    const source = await file.text();
    await loading; // they say what a trace of a policy is
    open(source);
  } catch (error) {
    failed(error);
  }
});

loading = load();
watch();
