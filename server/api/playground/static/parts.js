// What an answer consists of, in order: thoughts, text, calls of tools. Knows records and messages;
// does not know how they are shown.
//
// A part is {type: "reasoning" | "content", text} or {type: "call", id, name, arguments}. A trace's
// pieces are those of its parts, one after the other.

// Takes in a stream's delta. Returns the text that came.
export function add(parts, delta) {
  let added = "";
  const more = (type, text) => {
    if (!text) return;
    if (parts.at(-1)?.type !== type) parts.push({ type, text: "" });
    parts.at(-1).text += text;
    added += text;
  };
  more("reasoning", delta.reasoning);
  more("content", delta.content);
  // In its older shape a call has no id.
  const calls = delta.tool_calls ?? (delta.function_call ? [{ function: delta.function_call }] : []);
  for (const { id, function: called } of calls) {
    const { name, arguments: text = "" } = called;
    if (name) parts.push({ type: "call", ...(id ? { id } : {}), name, arguments: "" });
    parts.at(-1).arguments += text;
    added += (name ?? "") + text;
  }
  return added;
}

export const textOfPart = (part) => (part.type === "call" ? part.name + part.arguments : part.text);

export const titleOfPart = (part) => (part.type === "call" ? `Call of ${part.name}` : "Thoughts");

// The parts with what is to be seen of their pieces: {part, pieces: [{at, text, speaker, name}]}. at: the
// piece's place among all. A call's arguments are laid out.
export function sections(parts, pieces) {
  let length = 0;
  const made = parts.map((part) => {
    const begins = length;
    length += textOfPart(part).length;
    return { part, begins, ends: length, lay: layout(), pieces: [] };
  });
  let number = 0;
  let place = 0;
  pieces.forEach(({ text, speaker }, at) => {
    while (number < made.length - 1 && place >= made[number].ends) number++;
    const section = made[number];
    const call = section?.part.type === "call";
    const name = call && place < section.begins + section.part.name.length;
    section?.pieces.push({ at, text: call && !name ? section.lay(text) : text, speaker, name });
    place += text.length;
  });
  return made.map(({ part, pieces: own }) => ({ part, pieces: own }));
}

// A piece's text in turns: what is inked, what is not (white space in front, a new line of a call).
export function inks(text, { type }) {
  const runs = text.split(type === "call" ? /(^\s+|\n *)/ : /(^\s+)/);
  return runs
    .map((run, number) => ({ text: run, ink: number % 2 === 0 }))
    .filter((run, number) => run.text || number === runs.length - 1);
}

const DEEPEST = 20; // that is still indented

// A function that lays out a JSON text, which it gets piece by piece.
export function layout() {
  let depth = 0;
  let inString = false;
  let escape = false;
  let fresh = false; // a new line is due
  let empty = false; // nothing came since a bracket
  const line = () => `\n${"  ".repeat(Math.max(0, Math.min(depth, DEEPEST)))}`;
  const due = () => {
    const text = fresh ? line() : "";
    fresh = empty = false;
    return text;
  };
  const next = (letter) => {
    if (inString) {
      inString = escape || letter !== '"';
      escape = !escape && letter === "\\";
      return letter;
    }
    if (/\s/.test(letter)) return "";
    if (letter === "}" || letter === "]") {
      depth--;
      const text = empty ? letter : line() + letter;
      fresh = empty = false;
      return text;
    }
    if (letter === ",") {
      fresh = true;
      return letter;
    }
    if (letter === ":") return ": ";
    const text = due() + letter;
    if (letter === "{" || letter === "[") {
      depth++;
      fresh = empty = true;
    }
    inString = letter === '"';
    return text;
  };
  return (text) => Array.from(text, next).join("");
}

// -- messages ---------------------------------------------------------------------------------

// The calls that can be answered: those that are whole.
export const answerable = ({ parts }) => parts.filter((part) => part.id && whole(part));

const whole = (part) => part.type === "call" && isJson(part.arguments);

function isJson(text) {
  try {
    JSON.parse(text);
    return true;
  } catch {
    return false;
  }
}

// An answer as the assistant's message that a chat goes on with; null where nothing was said.
export function message({ parts }) {
  const text = (type) => parts.map((part) => (part.type === type ? part.text : "")).join("");
  const [content, reasoning] = [text("content"), text("reasoning")];
  const calls = parts.filter(whole).map(({ id, name, arguments: given }) => ({
    ...(id ? { id, type: "function" } : {}),
    function: { name, arguments: given },
  }));
  if (!content && !calls.length) return null;
  return {
    role: "assistant",
    content: content || null,
    ...(reasoning ? { reasoning_content: reasoning } : {}),
    ...(calls.length && (calls[0].id ? { tool_calls: calls } : { function_call: calls[0].function })),
  };
}

// What a message says, calls and all.
export function spoken({ content, tool_calls, function_call }) {
  const parts = typeof content === "string" ? [content] : (content ?? []).map(({ text }) => text);
  const called = function_call ? [function_call] : (tool_calls ?? []).map((call) => call.function);
  const calls = called.map(({ name, arguments: given }) => `${name} ${given}`);
  return [...parts, ...calls].filter(Boolean).join("\n");
}
