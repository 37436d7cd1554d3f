// The page's words in two languages (words.json), and small helpers to build the document. Text from the data goes
// through textContent only: nothing here or elsewhere parses markup from a string.

const page = document.documentElement;
let language = "en";

function say(key, values = {}) {
  const entry = WORDS[key];
  if (!entry) return key;
  return entry[language === "zh" ? 1 : 0].replace(/\{(\w+)\}/g, (whole, name) =>
    name in values ? String(values[name]) : whole,
  );
}

// A word that may be missing, such as a kind of decision of somebody's own method: then the word itself.
function sayKind(kind) {
  return WORDS[`kind ${kind}`] ? say(`kind ${kind}`) : String(kind);
}

function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "onclick") element.addEventListener("click", value);
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

function recall(key) {
  try {
    return localStorage.getItem(`dataflex-report-${key}`);
  } catch {
    return null; // a browser may forbid storage to pages opened from disk
  }
}

function remember(key, value) {
  try {
    localStorage.setItem(`dataflex-report-${key}`, value);
  } catch {
    // the choice then lasts as long as the page
  }
}
