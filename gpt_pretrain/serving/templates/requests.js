// Requests to the server. Whatever comes back is text and numbers, and nothing of it is ever taken for markup.

const BROKEN = "The connection ended before the text did.";
let serverKey = kept("key") ?? "";

class RefusedError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

function useKey(key) {
  serverKey = key;
  keep("key", key);
}

// Sends a request, with a body as JSON if there is one, and returns the response. Paths are relative, since a proxy may have put
// the page into a folder.
async function send(path, { body, signal } = {}) {
  const headers = serverKey ? { Authorization: `Bearer ${serverKey}` } : {};
  const options = { headers, signal };
  if (body !== undefined) {
    Object.assign(options, { method: "POST", body: JSON.stringify(body) });
    headers["Content-Type"] = "application/json";
  }
  const response = await reach(path, options);
  if (!response.ok) throw new RefusedError(response.status, await reasonOf(response));
  return response;
}

async function reach(path, options) {
  try {
    return await fetch(path, options);
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server cannot be reached. Is it still running?");
  }
}

async function reasonOf(response) {
  try {
    return (await response.json()).error.message;
  } catch {
    return `The server answered with the status ${response.status}.`;
  }
}

async function ask(path, body, signal) {
  return (await send(path, { body, signal })).json();
}

// Yields the events of a continuation as they arrive.
async function* continuation(body, signal) {
  const response = await send("api/continue", { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isOver = false;
  try {
    for (;;) {
      const { done, value } = await nextPiece(reader);
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const line of events) {
        if (!line.startsWith("data: ")) continue; // a comment, against proxies that end quiet connections
        const event = JSON.parse(line.slice("data: ".length));
        if (event.error) throw new Error(event.error.message);
        isOver = Boolean(event.finish_reason);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have been ended already
  }
  if (!isOver) throw new Error(BROKEN);
}

async function nextPiece(reader) {
  try {
    return await reader.read();
  } catch {
    throw new Error(BROKEN);
  }
}
