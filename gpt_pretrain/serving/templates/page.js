// The page: the prompt, its tokens, the buttons, and one pane for each model that is shown.

const ENCODING_DELAY = 150; // milliseconds without typing

const form = document.getElementById("form");
const prompt = document.getElementById("prompt");
const buttons = Object.fromEntries(["stop", "continue", "regenerate"].map((id) => [id, document.getElementById(id)]));
const surroundings = { models: [], announce, changed };
const views = {}; // the panes of each view that was opened
let panes = [];

function announce(text) {
  document.getElementById("announcements").textContent = text;
}

function showProblem(message) {
  const problem = document.getElementById("problem");
  problem.hidden = !message;
  problem.textContent = message;
}

function changed() {
  buttons.stop.disabled = !panes.some((pane) => pane.isRunning);
  buttons.continue.disabled = buttons.regenerate.disabled = !panes.some((pane) => pane.hasText);
  for (const pane of panes) pane.updateButtons();
  showPromptTokens();
}

// Views.

// Returns a run's checkpoints in the order of its training: of the run that the first pane shows, or else of the first one.
function timelineModels() {
  const withSteps = surroundings.models.filter((model) => model.run !== null && model.step !== null);
  const lists = [...new Set(withSteps.map((model) => model.run))].map((run) => withSteps.filter((model) => model.run === run));
  const lines = lists.filter((list) => new Set(list.map((model) => model.step)).size > 1);
  const chosen = lines.find((list) => list.includes(views.one[0].model)) ?? lines[0] ?? [];
  return chosen.sort((one, other) => one.step - other.step);
}

function panesOf(view) {
  const [first, second] = surroundings.models;
  if (view === "one") return [new Pane(first, surroundings)];
  if (view === "two") return [views.one[0], new Pane(second ?? first, surroundings)];
  return timelineModels().map((model) => new Pane(model, surroundings, { heading: `Epoch ${model.epoch}, step ${model.step}` }));
}

function openView(view) {
  if (view === "timeline") delete views.timeline; // the run may be another one
  for (const pane of panes) pane.stop();
  panes = views[view] ??= panesOf(view);
  const container = document.getElementById("panes");
  container.classList.toggle("timeline", view === "timeline");
  container.replaceChildren(...panes.map((pane) => pane.element));
  changed();
}

function offerViews() {
  const radios = Object.fromEntries([...document.getElementsByName("view")].map((radio) => [radio.value, radio]));
  radios.two.disabled = surroundings.models.length < 2;
  radios.timeline.disabled = !timelineModels().length;
  for (const [view, setting] of [["two", "models=[RUN,OTHER]"], ["timeline", "timeline=5"]]) {
    if (radios[view].disabled) radios[view].parentElement.append(element("span", { className: "quiet" }, `(start the server with ${setting})`));
  }
  for (const radio of Object.values(radios)) radio.addEventListener("change", () => openView(radio.value));
}

// The tokenizer's view of the prompt.

let encodingTimer;
let encoder = new AbortController();
let encoded = ""; // the models and the prompt that are shown

function showPromptTokens() {
  const names = modelsOfPrompt();
  if (JSON.stringify([names, prompt.value]) === encoded) return;
  encoded = JSON.stringify([names, prompt.value]);
  clearTimeout(encodingTimer);
  encodingTimer = setTimeout(() => encodePrompt(names), ENCODING_DELAY);
}

// Returns the names of the models whose tokens are shown; the checkpoints of a run have the same ones.
function modelsOfPrompt() {
  const isTimeline = panes === views.timeline;
  return [...new Set((isTimeline ? panes.slice(0, 1) : panes).map((pane) => pane.model.name))];
}

async function encodePrompt(names) {
  encoder.abort();
  encoder = new AbortController();
  const { signal } = encoder;
  try {
    const answers = await Promise.all(names.map((model) => ask("api/tokens", { model, text: prompt.value }, signal)));
    signal.throwIfAborted();
    drawPromptTokens(names, answers.map(({ tokens }) => tokens));
    warnOfPrompt(answers.map(({ warning }) => warning));
  } catch (error) {
    if (signal.aborted) return;
    document.getElementById("counts").textContent = "Tokens of the prompt"; // those that are shown are of an earlier one
    document.getElementById("token-views").replaceChildren();
    warnOfPrompt([error.message]);
  }
}

// Shows what a model does not read as it is typed.
function warnOfPrompt(warnings) {
  const shown = document.getElementById("prompt-warning");
  shown.textContent = [...new Set(warnings.filter(Boolean))].join(" ");
  shown.hidden = !shown.textContent;
}

function drawPromptTokens(names, lists) {
  const characters = [...prompt.value].length;
  const counts = [...new Set(lists.map((tokens) => tokens.length))].join(" and ");
  document.getElementById("counts").textContent = `Tokens of the prompt: ${counts}, for ${characters} characters`;
  const parts = lists.map((tokens, index) => [...(lists.length > 1 ? [element("h2", {}, names[index])] : []), tokenList(tokens)]);
  document.getElementById("token-views").replaceChildren(...parts.flat());
}

// Buttons.

function everyPane(work) {
  showProblem("");
  if (!form.reportValidity()) return;
  for (const pane of panes) work(pane);
  panes[0].element.scrollIntoView({ block: "nearest" }); // on a phone it is below the buttons
}

function listenToForm() {
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    everyPane((pane) => pane.generate(prompt.value));
  });
  form.addEventListener("invalid", () => (document.getElementById("settings").open = true), true); // to be seen, it must be open
  prompt.addEventListener("input", () => {
    keep("prompt", prompt.value);
    showPromptTokens();
  });
  prompt.addEventListener("keydown", (event) => {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey) && !event.isComposing) form.requestSubmit();
  });
  buttons.stop.addEventListener("click", () => panes.forEach((pane) => pane.stop()));
  buttons.continue.addEventListener("click", () => everyPane((pane) => pane.goOn()));
  buttons.regenerate.addEventListener("click", () => {
    if (form.reportValidity()) takeNextSeed();
    everyPane((pane) => pane.regenerate());
  });
}

// The start.

async function loadModels() {
  const keyForm = document.getElementById("key-form");
  showProblem("");
  try {
    surroundings.models = (await ask("api/models")).models;
  } catch (error) {
    keyForm.hidden = error.status !== 401;
    if (keyForm.hidden || serverKey) showProblem(keyForm.hidden ? error.message : "This is not the key of the server.");
    return;
  }
  keyForm.hidden = true;
  showPlayground();
}

function showPlayground() {
  const settings = document.getElementById("settings");
  showSettings(settings, Math.max(...surroundings.models.map((model) => model.context_length)));
  settings.open = matchMedia("(min-width: 46rem)").matches;
  document.getElementById("legend").append("Probability: ", ...legendItems().flatMap((item) => [item, " "]));
  prompt.value = kept("prompt") ?? prompt.value;
  document.getElementById("playground").hidden = false;
  listenToForm();
  openView("one");
  offerViews();
}

document.getElementById("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  useKey(document.getElementById("key").value);
  loadModels();
});
await loadModels();
