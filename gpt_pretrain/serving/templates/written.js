// A text as elements: its tokens, a token's alternatives, and the branches of the tree that the text belongs to.

const BRANCH_CHARACTERS = 60;

// Returns the element of a token. The text may be empty, as long as its character is incomplete.
function tokenElement(node, text, endId) {
  const { token } = node;
  const made = element("span", { tabIndex: -1, role: "button" });
  text.split("\n").forEach((line, index) => made.append(...(index ? [sign("\u21b5"), "\n"] : []), line));
  if (token.id === endId) made.append(sign("end of text"));
  else if (!text) made.append(sign("\u2025", "part"));
  markToken(made, node);
  return made;
}

// Returns a sign that is shown in a text, but that is no part of it.
function sign(text, kind = "") {
  return element("b", { className: `sign ${kind}`, "aria-hidden": "true" }, text);
}

function markToken(made, node) {
  const { token, parent, isGiven } = node;
  const hasBranches = parent.children.length > 1;
  made.className = `token ${shadeOf(token)}`;
  made.classList.toggle("given", Boolean(isGiven));
  made.classList.toggle("fork", hasBranches);
  const probability = typeof token.logprob === "number" ? `, ${percent(token.logprob)}` : "";
  made.setAttribute("aria-label", `${nameOf(token)}${probability}${hasBranches ? ", branches" : ""}`);
}

// Fills a container with a token and the likeliest ones in its place, which can be chosen.
function showAlternatives(container, node, choose) {
  const { token, parent } = node;
  const probability = typeof token.logprob === "number" ? `, ${percent(token.logprob)}` : "";
  const facts = element("span", { className: "quiet" }, ` id ${token.id}, bytes ${hexadecimal(token.bytes)}${probability}`);
  const others = (token.alternatives ?? []).map((other) => {
    const isOwn = other.id === token.id;
    const isKnown = parent.children.some((one) => one.token.id === other.id);
    const button = element("button", { type: "button", className: isKnown ? "known" : "" }, `${percent(other.logprob)} `);
    button.append(element("span", { className: "code" }, nameOf(other)));
    if (isKnown && !isOwn) button.append(element("span", { className: "unseen" }, ", a branch"));
    if (isOwn) button.setAttribute("aria-current", "true");
    button.addEventListener("click", () => choose(node, other));
    return element("li", {}, button);
  });
  const list = others.length ? element("ol", {}, ...others) : element("p", { className: "quiet" }, "Nothing was expected here.");
  container.replaceChildren(element("p", {}, element("span", { className: "code" }, nameOf(token)), facts), list);
}

// Returns a nested list of all texts in a tree, each part of which can be opened.
function branchList(tree, leaf, endId, open) {
  const shown = new Set(pathTo(leaf));
  const listBelow = (node) =>
    element(
      "ul",
      {},
      ...branchesBelow(node).map((nodes) => {
        const text = textOf(nodes.map((one) => one.token), endId).replace(/\s+/g, " ");
        const label = text.length > BRANCH_CHARACTERS ? `${[...text].slice(0, BRANCH_CHARACTERS).join("")}\u2026` : text;
        const button = element("button", { type: "button" }, label.trim() ? label : nameOf(nodes[0].token));
        if (shown.has(nodes[0])) button.setAttribute("aria-current", "true");
        button.addEventListener("click", () => open(nodes.at(-1)));
        return element("li", {}, button, ...(nodes.at(-1).children.length ? [listBelow(nodes.at(-1))] : []));
      }),
    );
  return listBelow(tree);
}
