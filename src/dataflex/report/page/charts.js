// Drawing: loads the plotting bundle once, draws into a container, redraws when its width changes.

const drawn = new Map(); // container -> {build, label, width, view}

const bundleReady = (async () => {
  const code = new TextDecoder().decode(await gunzip(bytesOf("bundle")));
  await new Promise((resolve) => requestAnimationFrame(() => setTimeout(resolve, 0))); // the text is painted first
  const script = document.createElement("script");
  script.textContent = code; // allowed by its hash in the page's policy
  document.head.append(script);
})();

// build(width) returns a specification; a container holds one picture.
function chart(build, label) {
  const container = make("div", { class: "chart", role: "img", "aria-label": label });
  drawn.set(container, { build, label, width: 0, view: null });
  return container;
}

async function drawCharts() {
  await bundleReady;
  for (const [container, picture] of drawn) {
    if (!container.isConnected) {
      picture.view?.finalize();
      drawn.delete(container);
      continue;
    }
    const width = Math.floor(container.clientWidth);
    if (width < 50 || Math.abs(width - picture.width) < 2) continue;
    picture.width = width;
    const spec = {
      ...picture.build(width),
      autosize: { type: "fit-x", contains: "padding" },
      description: picture.label,
    };
    spec.config = { ...CONFIG, ...spec.config, axisY: { ...CONFIG.axisY, ...spec.config?.axisY } };
    picture.view?.finalize();
    // ast: expressions are interpreted, never compiled, so that the policy can forbid eval.
    const options = {
      mode: "vega-lite",
      renderer: "svg",
      actions: false,
      ast: true,
      defaultStyle: false,
      tooltip: showTooltip,
    };
    picture.view = (await window.vegaEmbed(container, spec, options)).view;
  }
  performance.mark("drawn");
  page.dataset.drawn = String(Number(page.dataset.drawn ?? 0) + 1);
}

function showTooltip(handler, event, item, value) {
  const box = document.getElementById("tooltip");
  box.hidden = !value || typeof value !== "object";
  if (box.hidden) return;
  const lines = Object.entries(value).filter(([, text]) => text !== "" && text !== undefined && text !== "null");
  box.replaceChildren(
    ...lines.map(([title, text]) =>
      make("div", {}, title ? make("span", {}, title) : null, make("b", {}, String(text))),
    ),
  );
  const left = Math.min(event.clientX + 14, window.innerWidth - box.offsetWidth - 8);
  const top =
    event.clientY + 16 + box.offsetHeight > window.innerHeight
      ? event.clientY - box.offsetHeight - 10
      : event.clientY + 16;
  box.style.left = `${Math.max(8, left)}px`;
  box.style.top = `${Math.max(8, top)}px`;
}

let resizing = 0;
window.addEventListener("resize", () => {
  clearTimeout(resizing);
  resizing = setTimeout(drawCharts, 150);
});
