// Requests to the server. Whatever comes back is text and numbers, and nothing of it is ever taken for markup.

let serverKey = storedKey();

class RefusedError extends Error {
  constructor(status, message) {
    super(message);
    this.status = status;
  }
}

// Returns the key that this tab keeps. A browser that keeps nothing for pages refuses even the question.
function storedKey() {
  try {
    return sessionStorage.getItem("key") ?? "";
  } catch {
    return "";
  }
}

function useKey(key) {
  serverKey = key;
  try {
    sessionStorage.setItem("key", key);
  } catch {
    // It is asked for again when the page is loaded again.
  }
}

// Sends a request, with a body as JSON if there is one, and returns the response.
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
  const response = await send("/api/continue", { body, signal });
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  let isOver = false;
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) break;
      const events = (rest + value).split("\n\n");
      rest = events.pop();
      for (const line of events) {
        const event = JSON.parse(line.slice("data: ".length));
        if (event.error) throw new Error(event.error.message);
        isOver = Boolean(event.finish_reason);
        yield event;
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have been ended already
  }
  if (!isOver) throw new Error("The connection ended before the text did.");
}
