// A table of any length: only the rows in sight are in the document. Sorting, searching and scrolling keep their state
// when the data are replaced.

const ROW_HEIGHT = 34;
const PRINTED_ROWS = 40;

class VirtualTable {
  // columns: [{key, title, value(row), show(row), number, width}]; select(row) is told which row was picked.
  constructor({ label, height, select, searchable }) {
    this.select = select;
    this.height = height;
    this.order = [];
    this.sort = { key: null, descending: false };
    this.query = "";
    this.picked = null;
    this.head = make("tr");
    this.body = make("tbody");
    this.columns = make("colgroup");
    this.table = make(
      "table",
      { class: "virtual", role: "grid" },
      this.columns,
      make("thead", {}, this.head),
      this.body,
    );
    this.scroller = make(
      "div",
      { class: "scroller", tabindex: "0", role: "region", style: `max-height:${height}px` },
      this.table,
    );
    this.count = make("span", { class: "count", role: "status" });
    this.search = searchable ? make("input", { type: "search", autocomplete: "off", spellcheck: "false" }) : null;
    this.label = label;
    this.element = make("div", { class: "table" }, this.scroller);
    this.scroller.addEventListener("scroll", () => this.draw(), { passive: true });
    this.scroller.addEventListener("keydown", (event) => this.key(event));
    this.search?.addEventListener("input", () => {
      this.query = this.search.value;
      this.scroller.scrollTop = 0;
      this.arrange();
    });
    this.element.addEventListener("click", (event) => {
      const row = event.target.closest?.("tr[data-at]");
      if (row) this.pick(Number(row.dataset.at));
    });
  }

  // matches(row, query in lower case) says whether a row is found; initial: {key, descending} for the first time.
  setData({ columns, count, matches, initial }) {
    this.data = columns;
    this.length = count;
    this.matches = matches;
    if (this.sort.key === null && initial) this.sort = { ...initial };
    if (!columns.some((column) => column.key === this.sort.key)) this.sort = { key: columns[0].key, descending: false };
    this.scroller.setAttribute("aria-label", say(this.label));
    this.columns.replaceChildren(
      ...columns.map((column) => make("col", { style: column.width ? `width:${column.width}` : null })),
    );
    this.head.replaceChildren(...columns.map((column) => this.header(column)));
    this.arrange();
  }

  header(column) {
    const sorted = column.key === this.sort.key;
    const direction = sorted ? (this.sort.descending ? "descending" : "ascending") : "none";
    const arrow = make(
      "span",
      { "aria-hidden": "true", class: "arrow" },
      sorted ? (this.sort.descending ? "▼" : "▲") : "",
    );
    const button = make("button", { type: "button", "data-key": column.key }, column.title, arrow);
    button.addEventListener("click", () => {
      const descending = sorted ? !this.sort.descending : Boolean(column.number);
      this.sortBy(column.key, descending);
      this.head.querySelector(`button[data-key="${CSS.escape(column.key)}"]`)?.focus();
    });
    return make("th", { scope: "col", "aria-sort": direction, class: column.number ? "number" : null }, button);
  }

  sortBy(key, descending) {
    this.sort = { key, descending };
    this.head.replaceChildren(...this.data.map((column) => this.header(column)));
    this.scroller.scrollTop = 0;
    this.arrange();
  }

  arrange() {
    const column = this.data.find((one) => one.key === this.sort.key);
    const query = this.query.trim().toLowerCase();
    const found = [];
    for (let row = 0; row < this.length; row++) if (!query || this.matches(row, query)) found.push(row);
    const order = Uint32Array.from(found);
    if (column.number) {
      // Missing values last in both directions; ties by row.
      const sign = this.sort.descending ? -1 : 1;
      const keys = new Float64Array(this.length);
      for (const row of order) {
        const value = column.value(row);
        keys[row] = Number.isFinite(value) ? sign * value : Infinity;
      }
      order.sort((a, b) => (keys[a] === keys[b] ? a - b : keys[a] - keys[b]));
    } else {
      const ranks = ranksOf(order, column.value, this.length);
      order.sort((a, b) => (this.sort.descending ? ranks[b] - ranks[a] : ranks[a] - ranks[b]) || a - b);
    }
    this.order = order;
    this.count.textContent = say("found", { found: whole(order.length), all: whole(this.length) });
    this.table.setAttribute("aria-rowcount", order.length + 1);
    this.draw(true);
  }

  draw(force = false) {
    const visible = this.printing ? PRINTED_ROWS : Math.ceil(this.height / ROW_HEIGHT) + 8;
    const first = this.printing ? 0 : Math.max(0, Math.floor(this.scroller.scrollTop / ROW_HEIGHT) - 4);
    const last = Math.min(this.order.length, first + visible);
    if (!force && this.drawn === `${first} ${last}`) return;
    this.drawn = `${first} ${last}`;
    const rows = [this.spacer(first)];
    for (let at = first; at < last; at++) rows.push(this.row(at));
    if (!this.printing) rows.push(this.spacer(this.order.length - last));
    if (this.order.length === 0)
      rows.push(make("tr", {}, make("td", { colspan: this.data.length, class: "none" }, say("nothing found"))));
    this.body.replaceChildren(...rows);
  }

  spacer(num) {
    return make("tr", { class: "spacer", "aria-hidden": "true", style: `height:${num * ROW_HEIGHT}px` });
  }

  row(at) {
    const row = this.order[at];
    const cells = this.data.map((column) => {
      const text = column.show(row);
      return make("td", { class: column.number ? "number" : "text", title: column.number ? null : text }, text);
    });
    const picked = this.select && row === this.picked;
    return make(
      "tr",
      { "data-at": at, "aria-rowindex": at + 2, "aria-selected": this.select ? String(picked) : null },
      ...cells,
    );
  }

  pick(at) {
    if (!this.select || this.order.length === 0) return;
    const to = Math.max(0, Math.min(this.order.length - 1, at));
    this.picked = this.order[to];
    const top = to * ROW_HEIGHT;
    const room = this.scroller.clientHeight - 2 * ROW_HEIGHT;
    if (top < this.scroller.scrollTop) this.scroller.scrollTop = top;
    if (top > this.scroller.scrollTop + room) this.scroller.scrollTop = top - room;
    this.draw(true);
    this.select(this.picked);
  }

  key(event) {
    const moves = { ArrowDown: 1, ArrowUp: -1, PageDown: 10, PageUp: -10 };
    if (!this.select || !(event.key in moves) || event.target !== this.scroller) return;
    event.preventDefault();
    const at = this.order.indexOf(this.picked);
    this.pick(at < 0 ? 0 : at + moves[event.key]);
  }

  print(printing) {
    this.printing = printing;
    if (this.data) this.draw(true);
  }
}

// Position of each row's text among all texts, so that sorting compares numbers.
function ranksOf(order, value, length) {
  const texts = [...new Set(Array.from(order, value))].sort((a, b) => a.localeCompare(b, language));
  const rank = new Map(texts.map((text, i) => [text, i]));
  const ranks = new Float64Array(length);
  for (const row of order) ranks[row] = rank.get(value(row));
  return ranks;
}
