// What a tab keeps until it is closed. A browser that keeps nothing for pages refuses even the question.

function keep(name, text) {
  try {
    sessionStorage.setItem(name, text);
  } catch {
    // It is typed again when the page is loaded again.
  }
}

function kept(name) {
  try {
    return sessionStorage.getItem(name);
  } catch {
    return null;
  }
}
