// Talking to who serves the page: with the key of this tab, and nowhere else.

const KEPT_AS = "covey-key";
const TIMEOUT_MS = 90_000;

let memory = "";

/** The key of this tab, "" for none. Where the browser keeps nothing, it is in memory alone. */
export function key() {
  try {
    return sessionStorage.getItem(KEPT_AS) ?? "";
  } catch {
    return memory;
  }
}

export function keep(secret) {
  memory = secret;
  try {
    if (secret) sessionStorage.setItem(KEPT_AS, secret);
    else sessionStorage.removeItem(KEPT_AS);
  } catch {
    // It lives as long as the page then.
  }
}

/** What was refused or failed: the server's words, its status (0: no answer). */
export class Refusal extends Error {
  constructor(message, status) {
    super(message);
    this.status = status;
  }
}

export function headers(more) {
  const secret = key();
  return { ...more, ...(secret ? { Authorization: `Bearer ${secret}` } : {}) };
}

export async function refusal(answer) {
  let words = "";
  try {
    words = (await answer.json()).error.message;
  } catch {
    // It is not who we think, or a proxy before it.
  }
  return new Refusal(String(words || `The answer was ${answer.status}.`), answer.status);
}

/** Ask for JSON. Returns {status, body, etag}; a 304 has no body. Throws Refusal. */
export async function ask(path, { method = "GET", body, etag } = {}) {
  const asked = headers({});
  if (body !== undefined) asked["Content-Type"] = "application/json";
  if (etag) asked["If-None-Match"] = etag;
  let answer;
  try {
    answer = await fetch(path, {
      method, headers: asked, cache: "no-store", credentials: "omit", redirect: "error",
      body: body === undefined ? undefined : JSON.stringify(body),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch {
    throw new Refusal("Nobody answers there.", 0);
  }
  if (answer.status === 304) return { status: 304, etag };
  if (!answer.ok) throw await refusal(answer);
  return { status: answer.status, body: await answer.json(), etag: answer.headers.get("ETag") };
}
