// The slider of knobs.md: it steps through trained variants, whose records are in records.js.
// Not here: training (`python -m docs.play.knobs`), and what the page of the pendulum shares (page.js).
"use strict";

(() => {
  const { make, set, shown, path, scale, ticks, stillness } = Page;
  const { knobs, variants, timesteps } = KNOB_RECORDS;
  const MEASURES = {
    return: { title: "Return of an evaluation, without noise", digits: 0 },
    q: { title: "Q over time (train/q_mean)", digits: 0, bound: 0 },
    saturation: { title: "Saturation (train/action_saturation)", digits: 2, range: [0, 1] },
  };
  const GLIDE = 300; // ms from one variant to the next
  const STAY = 1500; // ms at each variant, when it plays

  const now = { knob: Object.keys(knobs)[0], at: 0, timer: null };
  const variantsOf = (knob) => knobs[knob].variants.map((name) => variants[name]);
  const last = ([, means]) => means.at(-1);

  // --- charts ---------------------------------------------------------------------------------------------------

  const box = { left: 44, right: 292, top: 8, bottom: 150 };
  const x = scale(0, timesteps, box.left, box.right);

  function chart(measure) {
    const { title, digits, bound } = MEASURES[measure];
    const [marks, others] = [make("g"), make("g")];
    const [band, line] = [make("path", { class: "play-band" }), make("path", { class: "play-line", "data-measure": measure })];
    const picture = make(
      "svg",
      { viewBox: "0 0 300 190", role: "img", "aria-label": `${title}. The table below says the same in numbers.`, class: "play-chart" },
      make("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, class: "play-frame" }),
      ...[0, timesteps / 2, timesteps].map((tick) => make("text", { x: x(tick), y: 166, "text-anchor": tick === timesteps ? "end" : "middle" }, tick.toLocaleString("en"))),
      make("text", { x: (box.left + box.right) / 2, y: 184, "text-anchor": "middle" }, "timesteps"),
      marks, others, band, line,
    ); // prettier-ignore
    const drawn = { figure: make("figure", {}, make("figcaption", {}, title), picture) };

    /** The scale is the knob's: it stays while the slider moves. */
    drawn.choose = () => {
      const tables = variantsOf(now.knob).map((each) => each[measure]);
      const [low, high] = MEASURES[measure].range ?? [Math.min(...tables.flatMap((each) => each[2])), Math.max(bound ?? -Infinity, ...tables.flatMap((each) => each[3]))];
      const y = (drawn.y = scale(low - 0.04 * (high - low), high + 0.04 * (high - low), box.bottom, box.top));
      marks.replaceChildren(
        ...ticks(low, high, 4).flatMap((tick) => [
          make("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "play-grid" }),
          make("text", { x: box.left - 5, y: y(tick) + 4, "text-anchor": "end" }, shown(tick, MEASURES[measure].range ? digits : 0)),
        ]),
        ...(bound === undefined ? [] : [make("line", { x1: box.left, x2: box.right, y1: y(bound), y2: y(bound), class: "play-bound" })]),
      );
      others.replaceChildren(...tables.map(([times, means]) => make("path", { d: path(times, means, x, y), class: "play-other" })));
      drawn.from = null;
    };

    /** The curve, `share` of the way from the one before to the chosen one. */
    drawn.draw = (share) => {
      const to = variantsOf(now.knob)[now.at][measure];
      const from = drawn.from?.[0].length === to[0].length ? drawn.from : to;
      const between = to.map((values, i) => values.map((value, j) => (i ? from[i][j] + share * (value - from[i][j]) : value)));
      const [times, means, lowest, highest] = (drawn.table = between);
      set(line, { d: path(times, means, x, drawn.y) });
      set(band, { d: `${path(times, highest, x, drawn.y)}${path([...times].reverse(), [...lowest].reverse(), x, drawn.y).replace("M", "L")}Z` });
    };
    return drawn;
  }

  const charts = Object.keys(MEASURES).map(chart);

  // --- words ----------------------------------------------------------------------------------------------------

  const words = make("p", { role: "status", "aria-live": "polite", class: "play-words" });
  const rows = make("tbody");
  const heads = ["", "return at the end", "Q at the end", "highest Q", "saturation at the end"];
  const table = make(
    "table",
    { class: "play-table" },
    make("caption", {}, "The same in numbers"),
    make("thead", {}, make("tr", {}, ...heads.map((head) => make("th", { scope: "col" }, head)))),
    rows,
  );

  const highest = (tables) => Math.max(...tables.q[3]);

  function fill() {
    const { title, values } = knobs[now.knob];
    table.querySelector("th").textContent = title;
    rows.replaceChildren(
      ...variantsOf(now.knob).map((tables, i) => {
        const numbers = [[last(tables.return), 0], [last(tables.q), 1], [highest(tables), 1], [last(tables.saturation), 2]];
        return make("tr", {}, make("th", { scope: "row" }, values[i]), ...numbers.map(([value, digits]) => make("td", { "data-value": value }, shown(value, digits))));
      }),
    ); // prettier-ignore
  }

  function tell() {
    const { title, values, limit } = knobs[now.knob];
    const tables = variantsOf(now.knob)[now.at];
    const runs = tables.seeds === 1 ? "one run" : `mean of ${tables.seeds} runs`;
    [...rows.children].forEach((row, i) => row.classList.toggle("play-now", i === now.at));
    words.textContent =
      `${title}: ${values[now.at]}. Return at the end ${shown(last(tables.return), 0)}, ${runs}; ` +
      `Q ${shown(last(tables.q), 1)}, at its highest ${shown(highest(tables), 1)}; saturation ${shown(last(tables.saturation), 2)}. ` +
      `Episodes end after ${limit} timesteps.`;
    value.textContent = values[now.at];
    set(slider, { "aria-valuetext": values[now.at] });
  }

  // --- controls -------------------------------------------------------------------------------------------------

  const value = make("output", { for: "play-value" });
  const slider = make("input", { type: "range", id: "play-value", min: 0, step: 1, input: () => {
    stop();
    step(Number(slider.value));
  } }); // prettier-ignore
  const play = make("button", { type: "button", click: () => (now.timer ? stop() : start()) }, "Play");

  function step(at) {
    charts.forEach((each) => (each.from = each.table));
    now.at = at;
    slider.value = at;
    tell();
    const token = (now.glide = {});
    if (stillness.matches) return charts.forEach((each) => each.draw(1));
    const begun = performance.now();
    const frame = (time) => {
      if (now.glide !== token) return;
      const share = Math.min(1, Math.max(0, (time - begun) / GLIDE));
      charts.forEach((each) => each.draw(share));
      if (share < 1) requestAnimationFrame(frame);
    };
    requestAnimationFrame(frame);
  }

  function start() {
    const many = knobs[now.knob].variants.length;
    const next = () => {
      step((now.at + 1) % many);
      if (now.at === many - 1) stop();
    };
    now.timer = setInterval(next, STAY);
    play.textContent = "Stop";
    step(0);
  }

  function stop() {
    clearInterval(now.timer);
    now.timer = null;
    play.textContent = "Play";
  }

  function choose(knob) {
    stop();
    now.glide = null;
    Object.assign(now, { knob, at: knobs[knob].variants.indexOf("base") });
    if (now.at < 0) now.at = 0;
    set(slider, { max: knobs[knob].variants.length - 1, "aria-label": knobs[knob].title });
    slider.value = now.at;
    name.textContent = knobs[knob].title;
    fill();
    charts.forEach((each) => {
      each.choose();
      each.draw(1);
    });
    tell();
  }

  const name = make("label", { for: "play-value" });
  const choice = make(
    "fieldset",
    {},
    make("legend", {}, "Knob"),
    ...Object.entries(knobs).map(([knob, { title }]) =>
      make("label", {}, make("input", { type: "radio", name: "play-knob", value: knob, checked: knob === now.knob, change: () => choose(knob) }), ` ${title}`),
    ),
  );

  document.getElementById("knobs").replaceChildren(
    make("div", { class: "play-controls" }, choice),
    make("div", { class: "play-controls play-slider" }, make("p", {}, name, slider, value, play)),
    make("div", { class: "play-charts" }, ...charts.map((each) => each.figure)),
    words,
    table,
  );
  choose(now.knob);
})();
