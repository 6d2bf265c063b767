// The text of a pane: an element for each token, and a note with what was likely in a token's place.
// The note follows the pointer and the focus, and stays once a token is clicked or Enter is pressed on it.

const NEAR_END = 40; // pixels, less than two lines

class WrittenText {
  // The function `choose` is called with a node and the token to put in its place.
  constructor(choose) {
    this.choose = choose;
    this.element = element("div", { className: "written", role: "group", "aria-label": "The text, token by token", dir: "auto" });
    this.note = element("div", { className: "note", role: "group", "aria-label": "Likely tokens", hidden: true });
    for (const kind of ["pointerover", "focusin"]) this.element.addEventListener(kind, (event) => this.preview(event));
    this.element.addEventListener("click", (event) => this.pin(this.nodeOf(event.target)));
    this.element.addEventListener("keydown", (event) => this.useKeys(event));
    this.element.addEventListener("scroll", () => this.noticeScroll());
    this.note.addEventListener("keydown", (event) => event.key === "Escape" && this.leaveNote());
  }

  // Shows a text from its start. The id of the end of a text is needed, since that token is none of the text.
  draw(nodes, endId) {
    this.endId = endId;
    this.decoder = new TextDecoder("utf-8", { ignoreBOM: true });
    this.elements = new Map();
    this.nodes = new WeakMap();
    this.pinned = null;
    this.follows = false;
    this.lastTop = 0;
    this.note.hidden = true;
    this.element.replaceChildren();
    for (const node of nodes) this.append(node);
  }

  append(node) {
    const bytes = node.token.id === this.endId ? [] : node.token.bytes;
    const made = tokenElement(node, this.decoder.decode(Uint8Array.from(bytes), { stream: true }), this.endId);
    if (!this.elements.size) made.tabIndex = 0;
    this.elements.set(node, made);
    this.nodes.set(made, node);
    this.element.append(made);
    if (this.follows) this.showEnd();
  }

  // Keeps the end of the text in sight while it grows, until somebody scrolls back.
  followEnd() {
    this.follows = true;
    this.showEnd();
  }

  noticeScroll() {
    const { scrollTop, clientHeight, scrollHeight } = this.element;
    const isAtEnd = scrollHeight - scrollTop - clientHeight < NEAR_END;
    this.follows = isAtEnd || (this.follows && scrollTop >= this.lastTop); // the text may have grown since it was scrolled here
    this.lastTop = scrollTop;
  }

  // Scrolls once for all tokens of a frame.
  showEnd() {
    this.scrolling ??= requestAnimationFrame(() => {
      this.scrolling = null;
      if (this.follows) this.element.scrollTop = this.element.scrollHeight;
    });
  }

  // Shows what has become known of the tokens since they were drawn: their probabilities and branches.
  update() {
    for (const [node, made] of this.elements) markToken(made, node);
    this.elements.get(this.pinned)?.classList.add("pinned");
  }

  set isBusy(isBusy) {
    this.element.ariaBusy = String(isBusy);
  }

  focusOn(node) {
    const made = this.elements.get(node);
    if (!made) return;
    for (const one of this.element.children) one.tabIndex = one === made ? 0 : -1;
    made.focus();
  }

  nodeOf(target) {
    return this.nodes.get(target.closest(".token"));
  }

  preview(event) {
    const node = this.nodeOf(event.target);
    if (node && !this.pinned) this.showNote(node);
  }

  showNote(node) {
    this.note.hidden = false;
    showAlternatives(this.note, node, this.choose);
  }

  // Keeps the note of a token; a second click lets it go.
  pin(node) {
    if (!node) return;
    const isSame = node === this.pinned;
    this.unpin();
    if (isSame) return;
    this.pinned = node;
    this.elements.get(node).classList.add("pinned");
    this.showNote(node);
  }

  unpin() {
    this.elements.get(this.pinned)?.classList.remove("pinned");
    this.pinned = null;
  }

  useKeys(event) {
    if (event.key === "Enter" || event.key === " ") {
      event.preventDefault();
      this.unpin();
      this.pin(this.nodeOf(event.target));
      this.note.querySelector("button")?.focus();
      return;
    }
    if (event.key === "Escape" || event.key in MOVES) this.unpin();
    moveToToken(event);
  }

  leaveNote() {
    const node = this.pinned;
    this.unpin();
    if (node) this.focusOn(node);
  }
}
