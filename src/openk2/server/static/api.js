// The server's API, as this page uses it: the models, and a streamed answer as a sequence of deltas.

/** An error that the server (or the network) reported, with its HTTP status (0: no answer at all). */
export class ApiError extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

let apiKey = sessionStorage.getItem("openk2-api-key") ?? "";

/** Keep the key for this tab; it is sent with every request. */
export function setApiKey(key) {
  apiKey = key;
  sessionStorage.setItem("openk2-api-key", key);
}

async function request(path, options = {}) {
  const headers = { ...options.headers };
  if (apiKey) headers.authorization = `Bearer ${apiKey}`;
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server does not answer. Is openk2 serve still running?", 0);
  }
  if (!response.ok) {
    const body = await response.json().catch(() => null);
    throw new ApiError(body?.error?.message ?? `HTTP status ${response.status}`, response.status);
  }
  return response;
}

export async function getJson(path) {
  return (await request(path)).json();
}

/** Yield the parsed chunks of a streamed chat completion. Aborting the signal stops the model too. */
export async function* streamChat(body, signal) {
  const response = await request("/v1/chat/completions", {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  let isDone = false;
  for await (const data of dataLines(response.body)) {
    if (data === "[DONE]") {
      isDone = true;
      break;
    }
    const chunk = JSON.parse(data);
    if (chunk.error) throw new ApiError(chunk.error.message, 0);
    yield chunk;
  }
  if (!isDone) throw new ApiError("The answer broke off.", 0);
}

/** The data of each server-sent event in a byte stream, however it is cut. */
async function* dataLines(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    rest += value;
    const events = rest.split("\n\n");
    rest = events.pop();
    for (const event of events) {
      if (event.startsWith("data: ")) yield event.slice("data: ".length);
    }
  }
}
