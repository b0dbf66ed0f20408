// How an answer ended, in words, and what helps where that is no good end. Knows records alone.

const REPEATED = "ended: it repeated itself";
const ROUNDS = "ended: too many rounds";
const LIMIT = "cut at max tokens";

// By stop_reason; the last three are the authors' own procedure's.
const ENDS = {
  length: LIMIT,
  context: "a context is full",
  max_rounds: ROUNDS,
  repeated_round: REPEATED,
  repetition: REPEATED,
  repeated_nudging_words: REPEATED,
  round: ROUNDS,
};

const FINISHES = { length: LIMIT, tool_calls: "calls a tool" };

export const ended = ({ stop_reason, finish_reason }) =>
  ENDS[stop_reason] ?? FINISHES[finish_reason] ?? "done";

// One sentence; "" where nothing has to be done.
export function remedy(record) {
  const end = ended(record);
  if (end === LIMIT) return "For more of it, raise Max tokens, or empty that field.";
  if (end === ENDS.context) return "Start a new chat, or ask with fewer words: a model can read no more.";
  if (end !== ROUNDS && end !== REPEATED) return "";
  // Doubt is a p1 under its threshold, or an entropy over its own.
  const threshold = record.policy?.threshold ?? "gamma";
  const byP1 = threshold === "gamma";
  const [oftener, rarer] = byP1
    ? ["Raise γ", "Lower γ"]
    : [`Lower the threshold of ${threshold}`, `Raise the threshold of ${threshold}`];
  if (end === ROUNDS) return `${rarer} for fewer and longer rounds, or raise the model’s max_rounds.`;
  // Over 1 the aligned model wrote all of it.
  if (byP1 && record.nudging?.gamma > 1) return "Lower γ to 1 or less, so that the base model writes too.";
  return `${oftener}, so that the aligned model speaks more often.`;
}
