"use strict";
// Shows the notes of a token below its text and, where other models have the same tokens, below theirs.
// Moves from token to token with the arrow keys, Home and End.
const texts = [...document.querySelectorAll(".surprise")];
const contents = new Map(texts.map((text) => [text, [...text.children].map((token) => token.textContent).join("\n")]));

function noteOf(text) {
  return text.parentElement.querySelector(".note");
}

function show(event) {
  const token = event.target.closest("i");
  if (!token) return;
  const own = token.parentElement;
  const index = Array.prototype.indexOf.call(own.children, token);
  for (const text of texts) {
    const same = text.children[index];
    for (const marked of text.querySelectorAll(".shown")) marked.classList.remove("shown");
    if (contents.get(text) !== contents.get(own)) continue;
    noteOf(text).textContent = same.title;
    same.classList.add("shown");
  }
}

// Returns the token that is nearest in the line above (-1) or below (1).
function inNextLine(token, direction) {
  const step = direction > 0 ? "nextElementSibling" : "previousElementSibling";
  const top = token.offsetTop;
  let next = token[step];
  while (next && next.offsetTop === top) next = next[step];
  if (!next) return null;
  const line = next.offsetTop;
  const distance = (one) => Math.abs(one.offsetLeft - token.offsetLeft);
  let best = next;
  for (let one = next; one && one.offsetTop === line; one = one[step]) if (distance(one) < distance(best)) best = one;
  return best;
}

const MOVES = {
  ArrowRight: (token) => token.nextElementSibling,
  ArrowLeft: (token) => token.previousElementSibling,
  ArrowDown: (token) => inNextLine(token, 1),
  ArrowUp: (token) => inNextLine(token, -1),
  Home: (token) => token.parentElement.firstElementChild,
  End: (token) => token.parentElement.lastElementChild,
};

function move(event) {
  const next = event.key in MOVES && event.target.matches("i") && MOVES[event.key](event.target);
  if (!next) return;
  event.target.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
}

for (const text of texts) {
  for (const kind of ["pointerover", "click", "focusin"]) text.addEventListener(kind, show);
  text.addEventListener("keydown", move);
}
