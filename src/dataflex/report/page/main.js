// The page as a whole: what is chosen on it, its sections, its two tables, and following a run.

const state = { runs: [], pools: [], run: 0, decision: Infinity, column: 0 };
const bodies = {}; // section id -> element whose content is redrawn
let content = null;
const poolOf = (run) => state.pools[run.pool] ?? { groups: [], texts: [], num_rows: run.summary.num_rows };

const tables = {
  rows: new VirtualTable({ label: "nav rows", height: 480, select: showRow, searchable: true }),
  ledger: new VirtualTable({ label: "nav ledger", height: 420, searchable: false }),
};
const rowDetail = make("div", { class: "detail", "aria-live": "polite" });

const SECTIONS = {
  summary: () => panels((run, pool) => summaryPanel(run, pool)),
  loss: () => lossSection(state.runs),
  parts: () => panels((run) => partsPanel(run)),
  preferred: () =>
    make(
      "div",
      {},
      columnPicker(),
      panels((run, pool) =>
        make(
          "div",
          {},
          preferredPanel(run, pool, state.column),
          make("h4", {}, say("heat title", { column: pool.groups[state.column]?.column ?? "" })),
          heatPanel(run, pool, state.column),
        ),
      ),
    ),
  windows: () => panels((run) => windowsPanel(run)),
  decision: () =>
    make(
      "div",
      {},
      decisionPicker(),
      panels((run) => decisionPanel(run, state.decision)),
    ),
  times: () => panels((run) => timesPanel(run)),
  rows: null, // tables are updated in place, so that search, order and scroll position stay
  ledger: null,
  config: () =>
    panels((run) =>
      make("details", {}, make("summary", {}, say("config summary")), make("pre", {}, run.config || DASH)),
    ),
};

function panels(build) {
  if (state.runs.length === 1) return build(state.runs[0], poolOf(state.runs[0]));
  return make(
    "div",
    { class: "runs" },
    ...state.runs.map((run) => make("section", { class: "run" }, make("h3", {}, run.name), build(run, poolOf(run)))),
  );
}

// What is built anew has the same controls in the same order: the focus and what was unfolded go over to them.
function keepPlace(body, change) {
  const controls = () => [...body.querySelectorAll("button, select, summary")];
  const unfolded = () => [...body.querySelectorAll("details")];
  const focused = controls().indexOf(document.activeElement);
  const open = unfolded().map((element) => element.open);
  change();
  unfolded().forEach((element, i) => (element.open = open[i] ?? false));
  if (focused >= 0) controls()[focused]?.focus({ preventScroll: true });
}

function redraw(...ids) {
  for (const id of ids) {
    if (!SECTIONS[id]) continue;
    bodies[id].style.minHeight = `${bodies[id].offsetHeight}px`; // no jump while the pictures are drawn again
    keepPlace(bodies[id], () => bodies[id].replaceChildren(SECTIONS[id]()));
  }
  return drawCharts().then(() => ids.forEach((id) => (bodies[id].style.minHeight = "")));
}

function choice(title, options, chosen, change) {
  const select = make(
    "select",
    {},
    ...options.map((text, i) => make("option", { value: i, selected: i === chosen }, text)),
  );
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", { class: "choice" }, make("span", {}, title), select);
}

function columnPicker() {
  const columns = state.runs.length ? poolOf(state.runs[0]).groups.map((groups) => groups.column) : [];
  if (columns.length < 2) return null;
  return make(
    "div",
    { class: "controls" },
    choice(say("group by"), columns, state.column, (at) => {
      state.column = at;
      redraw("preferred");
    }),
  );
}

function decisionPicker() {
  const longest = state.runs.reduce(
    (most, run) => (run.decisions.length > most.decisions.length ? run : most),
    state.runs[0],
  );
  const last = longest.decisions.length - 1;
  if (last < 1) return null;
  const at = Math.min(state.decision, last);
  const go = (to) => {
    state.decision = to >= last ? Infinity : Math.max(0, to); // the newest stays the newest while a run is followed
    redraw("decision");
  };
  const titles = longest.decisions.map((decision) => {
    const line = lineOf(longest, decision.segment);
    return `${say("segment")} ${decision.segment} · ${say("steps")} ${steps(line.start, line.stop)} · ${sayKind(line.decision)}`;
  });
  return make(
    "div",
    { class: "controls" },
    make(
      "button",
      { type: "button", class: "before", disabled: at === 0, onclick: () => go(at - 1) },
      `‹ ${say("before")}`,
    ),
    choice(say("decision"), titles, at, (to) => go(to)),
    make(
      "button",
      { type: "button", class: "after", disabled: at === last, onclick: () => go(at + 1) },
      `${say("after")} ›`,
    ),
  );
}

// --- the frame

function frame() {
  const main = document.getElementById("main");
  for (const id of Object.keys(SECTIONS)) {
    bodies[id] = make("div", { class: "body" });
    main.append(
      make(
        "section",
        { id, class: "section", "aria-labelledby": `${id}-title` },
        make("h2", { id: `${id}-title`, "data-word": `title ${id}` }),
        make("p", { class: "lead", "data-word": `lead ${id}` }),
        bodies[id],
      ),
    );
  }
  bodies.rows.append(
    make("div", { class: "controls" }, make("div", { class: "presets" })),
    tables.rows.count,
    tables.rows.element,
    rowDetail,
    make("p", { class: "caption" }),
  );
  bodies.ledger.append(tables.ledger.element);
  document.getElementById("language").addEventListener("click", () => {
    setLanguage(language === "en" ? "zh" : "en");
    remember("language", language);
    render();
  });
  document.getElementById("theme").addEventListener("click", () => {
    const to = isDark() ? "light" : "dark";
    page.dataset.theme = to;
    remember("theme", to);
    words();
  });
  window.addEventListener("beforeprint", () => Object.values(tables).forEach((table) => table.print(true)));
  window.addEventListener("afterprint", () => Object.values(tables).forEach((table) => table.print(false)));
}

const isDark = () =>
  page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

function setLanguage(to) {
  language = to;
  page.lang = to === "zh" ? "zh-CN" : "en";
}

function words() {
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  document.getElementById("language").textContent = language === "en" ? "中文" : "English";
  document.getElementById("theme").textContent = say(isDark() ? "light" : "dark");
  document
    .getElementById("nav")
    .replaceChildren(...Object.keys(SECTIONS).map((id) => make("a", { href: `#${id}` }, say(`nav ${id}`))));
  const names = state.runs.map((run) => run.name).join(say("comma"));
  document.title = names ? `${names} · DataFlex` : "DataFlex";
  document.getElementById("subtitle").textContent = state.runs.map((run) => run.path).join(" · ");
  if (content)
    document.getElementById("footer").textContent = say("footer", {
      version: content.dataflex,
      when: moment(content.created),
    });
}

async function render() {
  keepPlace(bodies.rows, fillRows);
  keepPlace(bodies.ledger, fillLedger);
  words();
  await redraw(...Object.keys(SECTIONS).filter((id) => SECTIONS[id]));
  page.dataset.segments = String(sum(state.runs.map((run) => run.summary.num_segments))); // drawn up to here
}

function take(unpacked) {
  content = unpacked;
  state.runs = unpacked.runs;
  state.run = Math.min(state.run, state.runs.length - 1);
}

function fail(error) {
  const box = document.getElementById("failure");
  box.hidden = false;
  box.textContent = say(typeof DecompressionStream === "undefined" ? "old browser" : "failed", {
    error: String(error),
  });
}

// --- following

async function follow() {
  const live = document.getElementById("live");
  live.hidden = false;
  let known = page.dataset.version ?? "";
  for (;;) {
    try {
      const answer = await (await fetch("version", { cache: "no-store" })).json();
      if (answer.error) throw new Error(answer.error);
      if (answer.version !== known) {
        const unpacked = await unpack(new Uint8Array(await (await fetch("data", { cache: "no-store" })).arrayBuffer()));
        if (JSON.stringify(unpacked.pools) !== JSON.stringify(state.pools.map((pool) => pool.key)))
          return location.reload();
        take(unpacked);
        await render();
        known = answer.version;
      }
      live.className = "live";
      live.textContent = say("live", { when: new Date().toLocaleTimeString(language === "zh" ? "zh-CN" : "en-GB") });
    } catch (error) {
      live.className = "live lost";
      live.textContent = say("lost", { error: error.message });
    }
    await new Promise((resolve) => setTimeout(resolve, 1000));
  }
}

async function main() {
  const wanted = recall("language") ?? (page.dataset.language === "auto" ? null : page.dataset.language);
  setLanguage(wanted ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en"));
  if (recall("theme")) page.dataset.theme = recall("theme");
  frame();
  words();
  const [pools, runs] = await Promise.all([unpack(bytesOf("pools")), unpack(bytesOf("runs"))]);
  state.pools = pools.pools;
  take(runs);
  await render();
  if (page.dataset.follow === "true") follow();
}

main().catch(fail);
