// The table of ledger lines of all runs.

function fillLedger() {
  const entries = state.runs.flatMap((run) => run.lines.map((line) => ({ run, line })));
  const get = (key) => (at) => entries[at].line[key];
  const numeric = (key, show, value = get(key), width = "86px") => ({
    key,
    title: say(`column ${key}`),
    number: true,
    width,
    value: (at) => value(at) ?? NaN,
    show: (at) => show(value(at)),
  });
  const wordy = (key, value, width) => ({ key, title: say(`column ${key}`), width, value, show: value });
  const part = (key, of) => (at) => (isNumber(get(key)(at)) && get(of)(at) ? get(key)(at) / get(of)(at) : undefined);
  const happened = ({ line }) => {
    if (line.kind === "rollback") return say("line rollback", { segment: line.from_segment });
    if (line.kind === "end") return say("line end", { step: line.step });
    if (line.kind !== "segment") return line.kind;
    return line.in_force ? sayKind(line.decision) : `${sayKind(line.decision)} (${say("rolled back")})`;
  };
  const window = ({ line }) =>
    line.window && isNumber(line.window.start_share)
      ? `${percent(line.window.start_share, 1)} ${DASH} ${percent(line.window.end_share, 1)}`
      : DASH;
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
    numeric("speed", whole, (at) =>
      entries[at].line.scoring_seconds > 0
        ? entries[at].line.scored_tokens / entries[at].line.scoring_seconds
        : undefined,
    ),
    numeric("seconds", duration, get("seconds"), "94px"),
    numeric("share", percent, get("share_of_run")),
    wordy("warnings", (at) => (entries[at].line.warnings ?? [entries[at].line.reason ?? ""]).join(" ")),
  ];
  columns.find((column) => column.key === "steps").show = (at) =>
    isNumber(entries[at].line.start) ? steps(entries[at].line.start, entries[at].line.stop) : DASH;
  tables.ledger.setData({
    columns,
    count: entries.length,
    matches: () => true,
    initial: { key: "line", descending: false },
  });
}
