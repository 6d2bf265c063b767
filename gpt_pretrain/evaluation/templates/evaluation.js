// Shows the notes of a token below its text and, where other models have the same tokens, below theirs.
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

for (const text of texts) {
  for (const kind of ["pointerover", "click", "focusin"]) text.addEventListener(kind, show);
  text.addEventListener("keydown", moveToToken);
}
