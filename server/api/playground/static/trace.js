// A stored trace: the form that docs/playground.md describes, and server/api/traces.py reads.

import { add, textOfPart } from "./parts.js";

export const FORMAT = "nudge-trace";
export const VERSION = 1;

// What has been written of an answer so far; `answer` of a stored trace and more.
// request: the body without nudging and stream. nudging: every setting of the policies, or null
// where one model answers alone. policy: what a model's card says of the one that it names:
// {settings, threshold, trace}.
export function newRecord(request, nudging, policy) {
  return {
    request,
    nudging,
    policy: nudging ? policy : null,
    // What p1 is compared with; null where nothing is decided by it.
    gamma: nudging && policy.trace === "decisions" ? nudging.gamma : null,
    created: 0,
    server: "",
    text: "",
    parts: [], // of the text, as parts.js has them
    pieces: [],
    rejected: null,
    rounds: 0,
    finish_reason: null,
    stop_reason: null,
    usage: null,
  };
}

// Whether p1 and the token that was drawn may be of two distributions.
export const hasGrammar = ({ request }) =>
  ["response_format", "tools", "functions"].some((name) => name in request);

// The settings of a record that have an effect, as its policy's card names them: all that a request
// may say.
export function effective({ nudging, policy }) {
  const names = nudging ? ["policy", ...policy.settings] : [];
  return Object.fromEntries(names.map((name) => [name, nudging[name]]));
}

// Takes in one chunk of a stream.
export function take(record, chunk) {
  record.created = chunk.created;
  record.server = chunk.system_fingerprint;
  if (chunk.usage) record.usage = chunk.usage;
  for (const choice of chunk.choices) {
    record.text += add(record.parts, choice.delta);
    record.finish_reason = choice.finish_reason ?? record.finish_reason;
    const { pieces = [], stop_reason, rounds, rejected } = choice.nudging ?? {};
    record.pieces.push(...pieces);
    if (stop_reason) Object.assign(record, { stop_reason, rounds, rejected: rejected ?? null });
  }
}

// The pieces as they stand in the answer. Rounds have no probabilities, and are cleaned up at the
// end, so that the text is a part of what they join to.
export function shownPieces(record) {
  if (record.policy?.trace !== "rounds") return record.pieces;
  const joined = record.pieces.map((piece) => piece.text).join("");
  const from = joined.indexOf(record.text);
  if (!record.text || from < 0) return [];
  const shown = [];
  let at = -from;
  for (const piece of record.pieces) {
    const text = piece.text.slice(Math.max(0, -at), Math.max(0, record.text.length - at));
    at += piece.text.length;
    if (text) shown.push({ text, speaker: piece.speaker });
  }
  return shown;
}

export function stored(record) {
  const { text, parts, finish_reason, stop_reason, rounds, pieces, rejected } = record;
  const plain = parts.every(({ type }) => type === "content");
  return {
    format: FORMAT,
    version: VERSION,
    created: record.created,
    server: record.server,
    request: record.request,
    nudging: record.nudging,
    answer: {
      text,
      ...(plain ? {} : { parts }),
      finish_reason,
      stop_reason,
      rounds,
      pieces,
      ...(rejected ? { rejected } : {}),
    },
    usage: record.usage,
  };
}

// The record of a stored trace. Throws an Error whose message is for whoever opened the file.
// policies: what cards say of policies, by name. Of one that no card has, the trace itself says
// whether its pieces are the answer; nothing is said then of how it was decided.
export function parse(source, policies = {}) {
  let trace;
  try {
    trace = JSON.parse(source);
  } catch {
    throw new Error("This file is no JSON.");
  }
  if (trace?.format !== FORMAT) throw new Error("This JSON is no trace of a nudged answer.");
  if (trace.version !== VERSION) {
    throw new Error(`This trace has another version; this page reads version ${VERSION}.`);
  }
  const { request, nudging, answer, usage } = trace;
  check(Number.isInteger(trace.created), "created");
  check(typeof trace.server === "string", "server");
  check(request && typeof request.model === "string", "request.model");
  const messages = request.messages;
  check(Array.isArray(messages) && messages.length > 0, "request.messages");
  check(messages.every((each) => typeof each?.role === "string"), "request.messages");
  check(nudging === null || isNumber(nudging?.gamma), "nudging.gamma");
  check(nudging === null || ["base", "aligned"].includes(nudging.start), "nudging.start");
  check(nudging === null || typeof nudging.policy === "string", "nudging.policy");
  check(typeof answer?.text === "string", "answer.text");
  check(Array.isArray(answer.pieces), "answer.pieces");
  const parts = answer.parts ?? [{ type: "content", text: answer.text }];
  check(Array.isArray(parts) && parts.every(isPart), "answer.parts");
  check(parts.map(textOfPart).join("") === answer.text, "answer.parts");
  answer.pieces.forEach((piece, at) => {
    check(typeof piece?.text === "string", `answer.pieces.${at}.text`);
    check(["base", "aligned"].includes(piece.speaker), `answer.pieces.${at}.speaker`);
    check(isNumber(piece.top_prob), `answer.pieces.${at}.top_prob`);
    check(isToken(piece.rejected), `answer.pieces.${at}.rejected`);
  });
  check(isToken(answer.rejected), "answer.rejected");
  check(["stop", "length", "tool_calls"].includes(answer.finish_reason), "answer.finish_reason");
  check(typeof answer.stop_reason === "string", "answer.stop_reason");
  check(Number.isInteger(answer.rounds), "answer.rounds");
  check(Number.isInteger(usage?.completion_tokens), "usage.completion_tokens");
  const whole = answer.pieces.map((piece) => piece.text).join("") === answer.text;
  const policy = (nudging && policies[nudging.policy]) ?? {
    settings: [],
    threshold: null,
    trace: whole ? "pieces" : "rounds",
  };
  const kind = nudging ? policy.trace : "pieces";
  check(whole || kind === "rounds", "answer.text");
  check(nudging === null || usage.nudging, "usage.nudging");
  if (kind === "decisions" && !hasGrammar({ request })) {
    answer.pieces.forEach(({ speaker, top_prob }, at) =>
      check(speaker !== "base" || top_prob >= nudging.gamma, `answer.pieces.${at}`),
    );
  }
  const record = newRecord(request, nudging, policy);
  const { created, server } = trace;
  return Object.assign(record, answer, {
    parts,
    rejected: answer.rejected ?? null,
    created,
    server,
    usage,
  });
}

const isPart = (part) =>
  part?.type === "call"
    ? [part.id ?? "", part.name, part.arguments].every((each) => typeof each === "string")
    : ["content", "reasoning"].includes(part?.type) && typeof part.text === "string";
const isNumber = (value) => typeof value === "number" && Number.isFinite(value) && value >= 0;
const isToken = (value) =>
  value === undefined || (typeof value?.text === "string" && isNumber(value.top_prob));

function check(holds, where) {
  if (!holds) throw new Error(`This trace is damaged: ${where} is missing or wrong.`);
}
