// One model's text on the page: it grows while the server sends tokens, and goes on from any of them with another one.

class Pane {
  // The surroundings are the page's: `models` to choose from, `announce` for screen readers, `changed` after every change.
  constructor(model, surroundings, { heading } = {}) {
    this.surroundings = surroundings;
    this.trees = new Map();
    this.aborter = null;
    this.build(heading);
    this.useModel(model);
  }

  build(heading) {
    this.title = heading === undefined ? this.modelChoice() : element("h2", {}, heading);
    this.text = new WrittenText((node, token) => this.choose(node, token));
    this.status = element("p", { className: "quiet status" });
    this.copyButton = this.button("Copy", () => this.copy());
    this.backButton = this.button("Back", () => this.goBack());
    this.branches = element("details", { className: "branches", hidden: true }, element("summary", {}, "Branches"), element("div"));
    const buttons = element("div", { className: "row" }, this.copyButton, this.backButton);
    const shown = [this.title, this.text.element, this.text.note, this.status, buttons, this.branches];
    this.element = element("section", { className: "pane" }, ...shown);
  }

  button(label, work) {
    const made = element("button", { type: "button", disabled: true }, label);
    made.addEventListener("click", work);
    return made;
  }

  modelChoice() {
    const { models } = this.surroundings;
    this.choice = element("select", { "aria-label": "Model" }, ...models.map(({ name }) => element("option", { value: name }, name)));
    this.choice.addEventListener("change", () => this.useModel(models.find(({ name }) => name === this.choice.value)));
    return element("h2", {}, this.choice);
  }

  useModel(model) {
    this.stop();
    this.model = model;
    if (this.choice) this.choice.value = model.name;
    if (!this.trees.has(model.name)) this.trees.set(model.name, newTree());
    this.tree = this.trees.get(model.name);
    this.past = [];
    this.start = null;
    this.draw(lastBelow(this.tree));
    this.status.textContent = "";
    this.surroundings.changed();
  }

  get endId() {
    return this.model.end_token?.id;
  }

  get isRunning() {
    return this.aborter !== null;
  }

  get hasText() {
    return this.leaf !== this.tree;
  }

  // What the page's buttons do.

  generate(prompt) {
    return this.run(async (signal) => this.nodeOfPrompt(await this.encode(prompt, signal)));
  }

  goOn() {
    return this.run(() => this.leaf);
  }

  regenerate() {
    return this.run(() => this.start ?? this.leaf);
  }

  stop() {
    this.aborter?.abort();
  }

  async encode(prompt, signal) {
    const { tokens } = await ask("api/tokens", { model: this.model.name, text: prompt }, signal);
    return tokens;
  }

  nodeOfPrompt(tokens) {
    const { end_token: endToken } = this.model;
    const given = tokens.length || !endToken ? tokens : [endToken];
    if (!given.length) throw new Error("The prompt is empty.");
    let node = this.tree;
    for (const token of given) {
      node = follow(node, token);
      node.isGiven = true;
    }
    return node;
  }

  // Continues a text from the node that a function returns. A generation that is under way ends.
  async run(findStart) {
    this.stop();
    const aborter = new AbortController();
    this.aborter = aborter;
    this.surroundings.changed();
    const pace = new Pace();
    let end = "";
    try {
      end = await this.extend(await findStart(aborter.signal), pace, aborter.signal);
    } catch (error) {
      end = aborter.signal.aborted ? "Stopped." : error.message;
    }
    if (this.aborter !== aborter) return; // another one has begun
    this.aborter = null;
    this.finish(`${pace.text()} ${end}`.trim());
  }

  async extend(start, pace, signal) {
    signal.throwIfAborted();
    this.open(start);
    const request = this.requestFrom(start);
    this.start = start;
    this.text.isBusy = true;
    this.text.followEnd();
    let reason = null;
    for await (const event of continuation(request, signal)) {
      signal.throwIfAborted();
      if (event.prompt) this.scorePrompt(start, event.prompt);
      for (const token of event.tokens) this.append(token);
      pace.count(event.tokens.length);
      this.status.textContent = pace.text();
      reason = event.finish_reason;
    }
    return reason === "stop" ? "The model ended the text." : "";
  }

  requestFrom(node) {
    const path = pathTo(node);
    const room = this.model.context_length + 1 - path.length;
    if (room < 1) throw new Error(`The text fills the model's context of ${this.model.context_length} tokens.`);
    const settings = readSettings();
    return {
      ...settings,
      model: this.model.name,
      prompt: path.map((one) => one.token.id),
      max_tokens: Math.min(settings.max_tokens, room),
      echo: path.some((one) => one.token.logprob === undefined),
    };
  }

  scorePrompt(node, scores) {
    pathTo(node).forEach((one, index) => Object.assign(one.token, scores[index]));
    this.text.update();
  }

  append(token) {
    this.leaf = follow(this.leaf, token);
    this.text.append(this.leaf);
  }

  finish(report) {
    this.text.isBusy = false;
    this.status.textContent = report;
    this.drawBranches();
    this.surroundings.changed();
    const made = pathTo(this.leaf).filter((one) => !one.isGiven);
    this.surroundings.announce(`${this.model.name}: ${report} ${this.contentOf(made)}`);
  }

  // Ways through the tree.

  // Shows the text that ends with a node, and remembers the one that was shown.
  open(leaf) {
    if (this.hasText && this.leaf !== leaf) this.past.push(this.leaf);
    this.draw(leaf);
  }

  openBranch(node) {
    this.leaveGeneration();
    this.open(lastBelow(node));
    this.surroundings.changed();
  }

  goBack() {
    this.leaveGeneration();
    this.draw(this.past.pop());
    this.surroundings.changed();
  }

  leaveGeneration() {
    this.stop();
    this.aborter = null;
    this.text.isBusy = false;
    this.status.textContent = "";
  }

  // Goes on with another token in the place of a node's.
  choose(node, token) {
    const known = node.parent.children.find((one) => one.token.id === token.id);
    if (known) {
      this.openBranch(known);
      this.text.focusOn(known);
      return;
    }
    const chosen = follow(node.parent, { ...token, alternatives: node.token.alternatives });
    this.run(() => chosen);
    queueMicrotask(() => this.text.focusOn(chosen));
  }

  // What is on the screen.

  draw(leaf) {
    visit(leaf);
    this.leaf = leaf;
    this.text.draw(pathTo(leaf), this.endId);
    this.drawBranches();
  }

  drawBranches() {
    this.text.update();
    this.branches.hidden = !hasForks(this.tree);
    const list = this.branches.hidden ? [] : [branchList(this.tree, this.leaf, this.endId, (node) => this.openBranch(node))];
    this.branches.lastElementChild.replaceChildren(...list);
  }

  updateButtons() {
    this.copyButton.disabled = !this.hasText;
    this.backButton.disabled = !this.past.length;
  }

  async copy() {
    await copyText(this.contentOf(pathTo(this.leaf)));
    this.surroundings.announce("Copied.");
    this.copyButton.textContent = "Copied";
    setTimeout(() => (this.copyButton.textContent = "Copy"), 1500);
  }

  contentOf(nodes) {
    return textOf(nodes.map((one) => one.token), this.endId);
  }
}
