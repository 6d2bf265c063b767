// Keeps values until the tab is closed. A browser that stores nothing for pages raises an error even when a value is read.

function keep(name, text) {
  try {
    sessionStorage.setItem(name, text);
  } catch {
    // The user types the value again after a reload.
  }
}

function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}
