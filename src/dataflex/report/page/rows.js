// The table of samples: what a run holds of each row, found, sorted and read whole.

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
  const measured = (key, show, value) => ({
    key,
    title: say(`column ${key}`),
    number: true,
    width: "96px",
    value,
    show: (at) => show(value(at)),
  });
  const columns = [
    {
      key: "row",
      title: say("column row"),
      number: true,
      width: "76px",
      value: number,
      show: (at) => String(number(at)),
    },
    measured("times", whole, (at) => run.times[at]),
    ...(run.first
      ? [
          measured(
            "first",
            (v) => fixed(v, 4),
            (at) => run.first[at],
          ),
        ]
      : []),
    ...(run.first && run.last
      ? [
          measured(
            "last",
            (v) => fixed(v, 4),
            (at) => run.last[at],
          ),
          measured("delta", (v) => signed(v, 4), delta),
        ]
      : []),
    ...(pool.tokens ? [measured("tokens", whole, (at) => pool.tokens[number(at)])] : []),
    ...pool.groups.map((groups) => ({
      key: `group ${groups.column}`,
      title: groups.column,
      width: `${Math.min(190, 30 + 7.3 * Math.max(groups.column.length, ...groups.labels.map((one) => one.length)))}px`,
      value: (at) => label(groups, groups.codes[number(at)]),
      show: (at) => label(groups, groups.codes[number(at)]),
    })),
    { key: "text", title: say("column text"), value: text, show: text },
  ];
  const low = pool.groups.map((groups) => groups.labels.map((one) => one.toLowerCase()));
  const matches = (at, query) =>
    text(at).toLowerCase().includes(query) ||
    String(number(at)) === query ||
    pool.groups.some((groups, g) => low[g][groups.codes[number(at)]].includes(query));
  tables.rows.setData({ columns, count: run.times.length, matches, initial: { key: "times", descending: true } });
  const presets = {
    most: ["times", true],
    least: ["times", false],
    ...(run.first && run.last ? { improved: ["delta", true], worse: ["delta", false] } : {}),
  };
  const buttons = Object.entries(presets).map(([name, [key, descending]]) =>
    make(
      "button",
      { type: "button", "data-preset": name, onclick: () => tables.rows.sortBy(key, descending) },
      say(`preset ${name}`),
    ),
  );
  const search = tables.rows.search;
  search.setAttribute("placeholder", say("search hint"));
  const controls = bodies.rows.querySelector(".controls");
  if (!controls.contains(search))
    controls.append(make("label", { class: "choice search" }, make("span", { "data-word": "search" }), search));
  const names = state.runs.map((one) => one.name);
  const pick =
    names.length > 1
      ? choice(say("run"), names, state.run, (at) => {
          state.run = at;
          rowDetail.replaceChildren();
          fillRows();
        })
      : null;
  bodies.rows.querySelector(".presets").replaceChildren(...[pick, ...buttons].filter(Boolean));
  const held =
    run.times.length < run.summary.num_rows
      ? say("rows held", { held: whole(run.times.length), all: whole(run.summary.num_rows) })
      : "";
  const cut = pool.num_chars && pool.num_chars < 500 ? say("texts cut", { chars: pool.num_chars }) : "";
  bodies.rows.querySelector(".caption").textContent = [say("rows caption"), held, cut].filter(Boolean).join(" ");
}

function showRow(at) {
  const run = state.runs[state.run];
  const { pool, number, text } = rowAccess(run);
  const cut = !(number(at) in run.texts) && pool.num_chars < 500 && text(at).length >= pool.num_chars;
  const facts = tables.rows.data
    .filter((column) => column.key !== "text")
    .map((column) => make("div", {}, make("dt", {}, column.title), make("dd", {}, column.show(at))));
  rowDetail.replaceChildren(
    make("dl", {}, ...facts),
    make("pre", {}, text(at) || DASH),
    cut ? make("p", { class: "caption" }, say("text cut", { row: number(at) })) : "",
  );
}
