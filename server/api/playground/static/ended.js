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

export const ended = ({ stop_reason, finish_reason }) =>
  ENDS[stop_reason] ?? (finish_reason === "length" ? LIMIT : "done");

// One sentence; "" where nothing has to be done.
export function remedy(record) {
  const end = ended(record);
  if (end === LIMIT) return "For more of it, raise Max tokens, or empty that field.";
  if (end === ENDS.context) return "Start a new chat, or ask with fewer words: a model can read no more.";
  const nudging = record.nudging ?? {};
  const entropy = record.policy?.threshold === "entropy";
  if (end === ROUNDS) {
    const fewer = entropy ? "Raise the entropy threshold" : "Lower γ";
    return `${fewer} for fewer and longer rounds, or raise the model’s max_rounds.`;
  }
  if (end !== REPEATED) return "";
  // Then the aligned model wrote all of it.
  if (!entropy && nudging.gamma > 1) return "Raise the temperature, or lower γ to 1 or less.";
  const more = entropy ? "Lower the entropy threshold" : "Raise γ";
  return `${more}, so that the aligned model speaks more often.`;
}
