// Tokens as people see them: their text, their bytes, and a shade for their probability.

const PROBABILITY_LIMITS = [0.5, 0.25, 0.1, 0.05, 0.02, 0.005, 0.001];
const MAX_LISTED = 1000; // tokens of a prompt
const SIGNS = { " ": "\u00b7", "\n": "\u21b5", "\t": "\u2192" };

function shadeOf(token) {
  if (token.logprob === null || token.logprob === undefined) return "l0";
  const probability = Math.exp(token.logprob);
  return `l${PROBABILITY_LIMITS.filter((limit) => probability < limit).length}`;
}

function percent(logprob) {
  const share = 100 * Math.exp(logprob);
  return `${share >= 0.1 ? share.toFixed(1) : share.toPrecision(2)}%`;
}

function hexadecimal(bytes) {
  return bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" ");
}

// Returns a token as visible text: blanks and line ends as signs, and bytes that are no whole characters in hexadecimal.
function nameOf(token) {
  let text;
  try {
    text = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(Uint8Array.from(token.bytes));
  } catch {
    return token.bytes.map((byte) => `\\x${byte.toString(16).padStart(2, "0")}`).join("");
  }
  const controls = /[\u0000-\u001f\u007f-\u009f\u200b-\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;
  const visible = text.replace(/[ \n\t]/g, (blank) => SIGNS[blank]);
  return visible.replace(controls, (one) => `\\u${one.charCodeAt(0).toString(16).padStart(4, "0")}`) || `[${token.id}]`;
}

// Returns the tokens' text as a whole; the end of a text is none of it.
function textOf(tokens, endId) {
  const bytes = tokens.filter((token) => token.id !== endId).flatMap((token) => token.bytes);
  return new TextDecoder("utf-8", { ignoreBOM: true }).decode(Uint8Array.from(bytes));
}

function legendItems() {
  const shares = PROBABILITY_LIMITS.map((limit) => `${100 * limit}%`);
  const labels = [`${shares[0]} and more`, ...shares.slice(1), "less"];
  return labels.map((label, level) => element("span", { className: `l${level}` }, label));
}

// Returns a view of a prompt's tokens: the text, the id and the bytes of each.
function tokenList(tokens) {
  const shown = tokens.slice(0, MAX_LISTED).map((token) =>
    element(
      "li",
      {},
      element("span", { className: "code" }, nameOf(token)),
      element("span", { className: "quiet" }, `id ${token.id}`),
      element("span", { className: "quiet code" }, hexadecimal(token.bytes)),
    ),
  );
  if (tokens.length > MAX_LISTED) shown.push(element("li", {}, `and ${tokens.length - MAX_LISTED} more`));
  return element("ol", { className: "tokens", tabIndex: 0, "aria-label": "Tokens of the prompt" }, ...shown);
}
