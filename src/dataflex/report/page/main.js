// The page as a whole: what is chosen on it, its sections, its two tables, and following a run.

const state = { runs: [], pools: [], run: 0, decision: Infinity, column: 0, preset: "all" };
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
  preferred: () => make("div", {}, columnPicker(), panels((run, pool) => make("div", {}, preferredPanel(run, pool, state.column), make("h4", {}, say("heat title", { column: pool.groups[state.column]?.column ?? "" })), heatPanel(run, pool, state.column)))),
  windows: () => panels((run) => windowsPanel(run)),
  decision: () => make("div", {}, decisionPicker(), panels((run) => decisionPanel(run, state.decision))),
  times: () => panels((run) => timesPanel(run)),
  rows: null, // tables are updated in place, so that search, order and scroll position stay
  ledger: null,
  config: () => panels((run) => make("details", {}, make("summary", {}, say("config summary")), make("pre", {}, run.config || DASH))),
};

function panels(build) {
  if (state.runs.length === 1) return build(state.runs[0], poolOf(state.runs[0]));
  return make("div", { class: "runs" }, ...state.runs.map((run) => make("section", { class: "run" }, make("h3", {}, run.name), build(run, poolOf(run)))));
}

function redraw(...ids) {
  for (const id of ids) {
    if (!SECTIONS[id]) continue;
    bodies[id].style.minHeight = `${bodies[id].offsetHeight}px`; // no jump while the pictures are drawn again
    bodies[id].replaceChildren(SECTIONS[id]());
  }
  return drawCharts().then(() => ids.forEach((id) => (bodies[id].style.minHeight = "")));
}

function choice(title, options, chosen, change) {
  const select = make("select", {}, ...options.map((text, i) => make("option", { value: i, selected: i === chosen }, text)));
  select.addEventListener("change", () => change(Number(select.value)));
  return make("label", { class: "choice" }, make("span", {}, title), select);
}

function columnPicker() {
  const columns = state.runs.length ? poolOf(state.runs[0]).groups.map((groups) => groups.column) : [];
  if (columns.length < 2) return null;
  return make("div", { class: "controls" }, choice(say("group by"), columns, state.column, (at) => { state.column = at; redraw("preferred"); }));
}

function decisionPicker() {
  const longest = state.runs.reduce((most, run) => (run.decisions.length > most.decisions.length ? run : most), state.runs[0]);
  const last = longest.decisions.length - 1;
  if (last < 1) return null;
  const at = Math.min(state.decision, last);
  const go = (to, focus) => {
    state.decision = to >= last ? Infinity : Math.max(0, to); // the newest stays the newest while a run is followed
    redraw("decision");
    bodies.decision.querySelector(focus)?.focus();
  };
  const titles = longest.decisions.map((decision) => {
    const line = lineOf(longest, decision.segment);
    return `${say("segment")} ${decision.segment} · ${say("steps")} ${steps(line.start, line.stop)} · ${sayKind(line.decision)}`;
  });
  return make("div", { class: "controls" },
    make("button", { type: "button", class: "before", disabled: at === 0, onclick: () => go(at - 1, ".before") }, `‹ ${say("before")}`),
    choice(say("decision"), titles, at, (to) => go(to, "select")),
    make("button", { type: "button", class: "after", disabled: at === last, onclick: () => go(at + 1, ".after") }, `${say("after")} ›`));
}

// --- the table of rows

function rowAccess(run) {
  const pool = poolOf(run);
  const number = run.rows ? (at) => run.rows[at] : (at) => at;
  const text = (at) => run.texts[number(at)] ?? pool.texts[number(at)] ?? "";
  const delta = (at) => run.first[at] - run.last[at];
  return { pool, number, text, delta };
}

function fillRows() {
  const run = state.runs[state.run];
  const { pool, number, text, delta } = rowAccess(run);
  const measured = (key, show, value) => ({ key, title: say(`column ${key}`), number: true, width: "96px", value, show: (at) => show(value(at)) });
  const columns = [
    { key: "row", title: say("column row"), number: true, width: "76px", value: number, show: (at) => String(number(at)) },
    measured("times", whole, (at) => run.times[at]),
    ...(run.first ? [measured("first", (v) => fixed(v, 4), (at) => run.first[at])] : []),
    ...(run.first && run.last ? [measured("last", (v) => fixed(v, 4), (at) => run.last[at]), measured("delta", (v) => signed(v, 4), delta)] : []),
    ...(pool.tokens ? [measured("tokens", whole, (at) => pool.tokens[number(at)])] : []),
    ...pool.groups.map((groups) => ({ key: `group ${groups.column}`, title: groups.column, width: `${Math.min(190, 30 + 7.3 * Math.max(groups.column.length, ...groups.labels.map((one) => one.length)))}px`, value: (at) => label(groups, groups.codes[number(at)]), show: (at) => label(groups, groups.codes[number(at)]) })),
    { key: "text", title: say("column text"), value: text, show: text },
  ];
  const low = pool.groups.map((groups) => groups.labels.map((one) => one.toLowerCase()));
  const matches = (at, query) => text(at).toLowerCase().includes(query) || String(number(at)) === query || pool.groups.some((groups, g) => low[g][groups.codes[number(at)]].includes(query));
  tables.rows.setData({ columns, count: run.times.length, matches, initial: { key: "times", descending: true } });
  const presets = { most: ["times", true], least: ["times", false], ...(run.first && run.last ? { improved: ["delta", true], worse: ["delta", false] } : {}) };
  const buttons = Object.entries(presets).map(([name, [key, descending]]) => make("button", { type: "button", "data-preset": name, onclick: () => tables.rows.sortBy(key, descending) }, say(`preset ${name}`)));
  const search = tables.rows.search;
  search.setAttribute("placeholder", say("search hint"));
  const controls = bodies.rows.querySelector(".controls");
  if (!controls.contains(search)) controls.append(make("label", { class: "choice search" }, make("span", { "data-word": "search" }), search));
  const names = state.runs.map((one) => one.name);
  const pick = names.length > 1 ? choice(say("run"), names, state.run, (at) => { state.run = at; rowDetail.replaceChildren(); fillRows(); }) : null;
  bodies.rows.querySelector(".presets").replaceChildren(...[pick, ...buttons].filter(Boolean));
  const held = run.times.length < run.summary.num_rows ? say("rows held", { held: whole(run.times.length), all: whole(run.summary.num_rows) }) : "";
  const cut = pool.num_chars && pool.num_chars < 500 ? say("texts cut", { chars: pool.num_chars }) : "";
  bodies.rows.querySelector(".caption").textContent = [say("rows caption"), held, cut].filter(Boolean).join(" ");
}

function showRow(at) {
  const run = state.runs[state.run];
  const { pool, number, text } = rowAccess(run);
  const cut = !(number(at) in run.texts) && pool.num_chars < 500 && text(at).length >= pool.num_chars;
  const facts = tables.rows.data.filter((column) => column.key !== "text").map((column) => make("div", {}, make("dt", {}, column.title), make("dd", {}, column.show(at))));
  rowDetail.replaceChildren(make("dl", {}, ...facts), make("pre", {}, text(at) || DASH), cut ? make("p", { class: "caption" }, say("text cut", { row: number(at) })) : "");
}

// --- the table of the ledger

function fillLedger() {
  const entries = state.runs.flatMap((run) => run.lines.map((line) => ({ run, line })));
  const get = (key) => (at) => entries[at].line[key];
  const numeric = (key, show, value = get(key), width = "86px") => ({ key, title: say(`column ${key}`), number: true, width, value: (at) => value(at) ?? NaN, show: (at) => show(value(at)) });
  const wordy = (key, value, width) => ({ key, title: say(`column ${key}`), width, value, show: value });
  const part = (key, of) => (at) => (isNumber(get(key)(at)) && get(of)(at) ? get(key)(at) / get(of)(at) : undefined);
  const happened = ({ line }) => {
    if (line.kind === "rollback") return say("line rollback", { segment: line.from_segment });
    if (line.kind === "end") return say("line end", { step: line.step });
    if (line.kind !== "segment") return line.kind;
    return line.in_force ? sayKind(line.decision) : `${sayKind(line.decision)} (${say("rolled back")})`;
  };
  const window = ({ line }) => (line.window && isNumber(line.window.start_share) ? `${percent(line.window.start_share, 1)} ${DASH} ${percent(line.window.end_share, 1)}` : DASH);
  const columns = [
    numeric("line", whole, (at) => at + 1, "62px"),
    ...(state.runs.length > 1 ? [wordy("run", (at) => entries[at].run.name, "130px")] : []),
    numeric("segment", whole, get("segment"), "96px"),
    numeric("steps", (v) => v ?? DASH, get("start"), "92px"),
    wordy("decision", (at) => happened(entries[at]), "112px"),
    numeric("samples", whole, get("num_rows")),
    numeric("distinct", whole, get("num_distinct_rows")),
    wordy("window", (at) => window(entries[at]), "130px"),
    numeric("improved", percent, part("num_improved", "num_scored"), "98px"),
    numeric("inside", percent, part("num_from_window", "num_rows"), "98px"),
    numeric("scored", whole, get("scored_rows")),
    numeric("speed", whole, (at) => (entries[at].line.scoring_seconds > 0 ? entries[at].line.scored_tokens / entries[at].line.scoring_seconds : undefined)),
    numeric("seconds", duration, get("seconds"), "94px"),
    numeric("share", percent, get("share_of_run")),
    wordy("warnings", (at) => (entries[at].line.warnings ?? [entries[at].line.reason ?? ""]).join(" ")),
  ];
  columns.find((column) => column.key === "steps").show = (at) => (isNumber(entries[at].line.start) ? steps(entries[at].line.start, entries[at].line.stop) : DASH);
  tables.ledger.setData({ columns, count: entries.length, matches: () => true, initial: { key: "line", descending: false } });
}

// --- the frame

function frame() {
  const main = document.getElementById("main");
  for (const id of Object.keys(SECTIONS)) {
    bodies[id] = make("div", { class: "body" });
    main.append(make("section", { id, class: "section", "aria-labelledby": `${id}-title` }, make("h2", { id: `${id}-title`, "data-word": `title ${id}` }), make("p", { class: "lead", "data-word": `lead ${id}` }), bodies[id]));
  }
  bodies.rows.append(make("div", { class: "controls" }, make("div", { class: "presets" })), tables.rows.count, tables.rows.element, rowDetail, make("p", { class: "caption" }));
  bodies.ledger.append(tables.ledger.element);
  document.getElementById("language").addEventListener("click", () => { setLanguage(language === "en" ? "zh" : "en"); remember("language", language); render(); });
  document.getElementById("theme").addEventListener("click", () => { const to = isDark() ? "light" : "dark"; page.dataset.theme = to; remember("theme", to); words(); });
  window.addEventListener("beforeprint", () => Object.values(tables).forEach((table) => table.print(true)));
  window.addEventListener("afterprint", () => Object.values(tables).forEach((table) => table.print(false)));
}

const isDark = () => (page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);

function setLanguage(to) {
  language = to;
  page.lang = to === "zh" ? "zh-CN" : "en";
}

function words() {
  for (const element of document.querySelectorAll("[data-word]")) element.textContent = say(element.dataset.word);
  document.getElementById("language").textContent = language === "en" ? "中文" : "English";
  document.getElementById("theme").textContent = say(isDark() ? "light" : "dark");
  document.getElementById("nav").replaceChildren(...Object.keys(SECTIONS).map((id) => make("a", { href: `#${id}` }, say(`nav ${id}`))));
  const names = state.runs.map((run) => run.name).join(say("comma"));
  document.title = names ? `${names} · DataFlex` : "DataFlex";
  document.getElementById("subtitle").textContent = state.runs.map((run) => run.path).join(" · ");
  if (content) document.getElementById("footer").textContent = say("footer", { version: content.dataflex, when: moment(content.created) });
}

function render() {
  fillRows();
  fillLedger();
  words();
  return redraw(...Object.keys(SECTIONS).filter((id) => SECTIONS[id]));
}

function take(unpacked) {
  content = unpacked;
  state.runs = unpacked.runs;
  state.run = Math.min(state.run, state.runs.length - 1);
  page.dataset.segments = String(sum(state.runs.map((run) => run.summary.num_segments)));
}

function fail(error) {
  const box = document.getElementById("failure");
  box.hidden = false;
  box.textContent = say(typeof DecompressionStream === "undefined" ? "old browser" : "failed", { error: String(error) });
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
        if (JSON.stringify(unpacked.pools) !== JSON.stringify(state.pools.map((pool) => pool.key))) return location.reload();
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
