"use strict";
// Shows the note of a token below its text, and moves from token to token with the arrow keys.
for (const text of document.querySelectorAll(".surprise")) {
  const note = text.parentElement.querySelector(".note");
  const show = (event) => {
    const token = event.target.closest("i");
    if (token) note.textContent = token.title;
  };
  for (const kind of ["pointerover", "click", "focusin"]) text.addEventListener(kind, show);
  text.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" };
    const next = event.key in steps && event.target[steps[event.key]];
    if (!next) return;
    event.target.tabIndex = -1;
    next.tabIndex = 0;
    next.focus();
    event.preventDefault();
  });
}
