// The tree of a model's texts. Each node is a token after the one before it; where texts part, a node has several children.
// Of several children, the latest is the one that was visited last.

function newTree() {
  return { token: null, parent: null, children: [], latest: null };
}

// Returns the node of a token after another node: the one that is there already, or a new one.
function follow(parent, token) {
  let node = parent.children.find((one) => one.token.id === token.id);
  if (node) {
    Object.assign(node.token, token);
  } else {
    node = { token: { ...token }, parent, children: [], latest: null };
    parent.children.push(node);
  }
  parent.latest = node;
  return node;
}

// Makes a node the latest one, so that the text goes through it.
function visit(node) {
  for (let one = node; one.parent; one = one.parent) one.parent.latest = one;
}

// Returns the nodes from the first token of a text to this one.
function pathTo(node) {
  const path = [];
  for (let one = node; one.parent; one = one.parent) path.push(one);
  return path.reverse();
}

// Returns the end of the text that was visited last among those through this node.
function lastBelow(node) {
  while (node.latest) node = node.latest;
  return node;
}

// Returns what follows a node as branches, each with its nodes up to where it parts again.
function branchesBelow(node) {
  return node.children.map((first) => {
    const nodes = [first];
    while (nodes.at(-1).children.length === 1) nodes.push(nodes.at(-1).children[0]);
    return nodes;
  });
}

// Returns whether texts part anywhere below a node.
function hasForks(node) {
  while (node.children.length === 1) node = node.children[0];
  return node.children.length > 1;
}
