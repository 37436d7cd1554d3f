// Numbers as people read them; a missing one is a dash.

const DASH = "–";
const formatters = new Map();

function formatter(options) {
  const key = `${language} ${JSON.stringify(options)}`;
  if (!formatters.has(key)) formatters.set(key, new Intl.NumberFormat(language === "zh" ? "zh-CN" : "en-US", options));
  return formatters.get(key);
}

const isNumber = (value) => typeof value === "number" && Number.isFinite(value);
const whole = (value) => (isNumber(value) ? formatter({ maximumFractionDigits: 0 }).format(value) : DASH);

function fixed(value, digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits };
  return isNumber(value) ? formatter(options).format(value) : DASH;
}

function signed(value, digits) {
  const options = { minimumFractionDigits: digits, maximumFractionDigits: digits, signDisplay: "exceptZero" };
  return isNumber(value) ? formatter(options).format(value) : DASH;
}

function percent(value, digits = 0) {
  const options = { style: "percent", minimumFractionDigits: digits, maximumFractionDigits: digits };
  return isNumber(value) ? formatter(options).format(value) : DASH;
}

function duration(seconds) {
  if (!isNumber(seconds)) return DASH;
  if (seconds < 1) return `${fixed(seconds * 1000, 0)} ms`;
  if (seconds < 120) return `${fixed(seconds, 1)} s`;
  if (seconds < 7200) return `${fixed(seconds / 60, 1)} min`;
  return `${fixed(seconds / 3600, 1)} h`;
}

function moment(text) {
  const date = new Date(text);
  if (Number.isNaN(date.getTime())) return DASH;
  return date.toLocaleString(language === "zh" ? "zh-CN" : "en-GB", { dateStyle: "medium", timeStyle: "short" });
}

const steps = (start, stop) => `${start}${DASH}${stop}`;
const sum = (values) => values.reduce((total, value) => total + value, 0);
