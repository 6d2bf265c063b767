"use strict";
// Moves from token to token with the arrow keys, Home and End, in an element whose children are tokens.

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

const OPPOSITE = { ArrowRight: "ArrowLeft", ArrowLeft: "ArrowRight" };

function moveToToken(event) {
  const token = event.target;
  const isFromRight = getComputedStyle(event.currentTarget).direction === "rtl";
  const key = (isFromRight && OPPOSITE[event.key]) || event.key;
  const next = key in MOVES && token.parentElement === event.currentTarget && MOVES[key](token);
  if (!next) return;
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
  event.preventDefault();
}
