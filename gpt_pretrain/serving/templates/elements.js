// Returns a new element with properties and children. Strings become text, whatever is in them.
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("aria-") || name === "role") made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

// Copies a text. Browsers offer the clipboard only to pages of this machine or with TLS; a selection works everywhere.
async function copyText(text) {
  try {
    await navigator.clipboard.writeText(text);
  } catch {
    copySelection(text);
  }
}

function copySelection(text) {
  const area = element("textarea", { value: text, readOnly: true, className: "unseen" });
  document.body.append(area);
  area.select();
  document.execCommand("copy");
  area.remove();
}
