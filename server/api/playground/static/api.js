// The server's routes. Knows HTTP and server-sent events; knows nothing of what is shown.
// Addresses are relative, so that the page also works behind a proxy's path.

export class ApiError extends Error {
  constructor(message, status = 0, code = null) {
    super(message);
    this.status = status;
    this.code = code;
  }
}

function headers(key) {
  return key ? { Authorization: `Bearer ${key}` } : {};
}

async function failure(response) {
  try {
    const { error } = await response.json();
    return new ApiError(String(error.message), response.status, error.code);
  } catch {
    return new ApiError(`The server answered with status ${response.status}.`, response.status);
  }
}

async function ask(path, options) {
  try {
    return await fetch(path, { cache: "no-store", ...options });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server can't be reached.");
  }
}

// "ready", "degraded", "loading", "engine_unavailable" or "shutting_down".
export async function state() {
  const response = await ask("ready");
  try {
    return String((await response.json()).status);
  } catch {
    throw await failure(response);
  }
}

// The cards of the served models.
export async function models(key) {
  const response = await ask("v1/models", { headers: headers(key) });
  if (!response.ok) throw await failure(response);
  return (await response.json()).data;
}

// The chunks of a streamed chat. Leaving the loop, or the signal, closes the connection, and the
// server then frees both engines.
export async function* chat(body, key, signal) {
  const response = await ask("v1/chat/completions", {
    method: "POST",
    headers: { ...headers(key), "Content-Type": "application/json" },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await failure(response);
  for await (const data of events(response.body)) {
    if (data === "[DONE]") return;
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(String(chunk.error.message), 0, chunk.error.code);
    yield chunk;
  }
  throw new ApiError("The connection was lost before the answer's end.");
}

async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let buffer = "";
  try {
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return;
      const parts = (buffer + value).split("\n\n");
      buffer = parts.pop();
      for (const part of parts) {
        const lines = part.split("\n").filter((line) => line.startsWith("data:"));
        if (lines.length) yield lines.map((line) => line.slice(5).trimStart()).join("\n");
      }
    }
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The connection was lost before the answer's end.");
  } finally {
    reader.cancel().catch(() => {});
  }
}
