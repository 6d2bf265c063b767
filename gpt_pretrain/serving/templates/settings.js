// The settings. One that has its `off` value is left out of requests; `words` say what special values mean.

const SETTINGS = [
  { name: "temperature", label: "Temperature", min: 0, max: 2, step: 0.05, value: 0.7, words: { 0: "0, the most likely" } },
  { name: "top_k", label: "Top-k", min: 0, max: 200, step: 1, value: 25, off: 0, words: { 0: "all tokens" } },
  { name: "top_p", label: "Top-p", min: 0.01, max: 1, step: 0.01, value: 1, off: 1, words: { 1: "all tokens" } },
  { name: "min_p", label: "Min-p", min: 0, max: 1, step: 0.01, value: 0, off: 0, words: { 0: "all tokens" } },
  { name: "repetition_penalty", label: "Repetition penalty", min: 1, max: 2, step: 0.01, value: 1, off: 1, words: { 1: "none" } },
  { name: "max_tokens", label: "Length in tokens", min: 1, max: 500, step: 1, value: 60 },
  { name: "seed", label: "Seed", min: 0, max: Number.MAX_SAFE_INTEGER, step: 1, value: 1, isTyped: true },
];

function inputOf(name) {
  return document.getElementById(`setting-${name}`);
}

function shownValue(setting, value) {
  return setting.words?.[value] ?? String(value);
}

function settingRow(setting, chosen) {
  const { name, label, min, max, step, isTyped } = setting;
  const value = chosen[name] ?? setting.value;
  const shown = element("span", { className: "value", "aria-hidden": "true" });
  // The limits come before the value, which they would change otherwise.
  const input = element("input", { id: `setting-${name}`, type: isTyped ? "number" : "range", min, max, step, value, required: true });
  const update = () => {
    if (isTyped) return;
    shown.textContent = shownValue(setting, input.valueAsNumber);
    input.setAttribute("aria-valuetext", shown.textContent);
  };
  input.addEventListener("input", update);
  update();
  return element("div", { className: "setting" }, element("label", { htmlFor: input.id }, label), shown, input);
}

function showSettings(container, longestContext) {
  const length = SETTINGS.find((setting) => setting.name === "max_tokens");
  length.max = Math.min(length.max, longestContext);
  length.value = Math.min(length.value, length.max);
  const chosen = JSON.parse(kept("settings") ?? "{}");
  container.append(...SETTINGS.map((setting) => settingRow(setting, chosen)));
  container.addEventListener("input", keepSettings);
}

// Keeps the settings for when the page is loaded again.
function keepSettings() {
  keep("settings", JSON.stringify(Object.fromEntries(SETTINGS.map(({ name }) => [name, inputOf(name).value]))));
}

// Returns the fields of a request.
function readSettings() {
  const chosen = SETTINGS.map(({ name, off }) => [name, inputOf(name).valueAsNumber, off]);
  return Object.fromEntries(chosen.filter(([, value, off]) => value !== off).map(([name, value]) => [name, value]));
}

function takeNextSeed() {
  const seed = inputOf("seed");
  seed.value = seed.valueAsNumber < Number.MAX_SAFE_INTEGER ? seed.valueAsNumber + 1 : 0;
  keepSettings();
}
