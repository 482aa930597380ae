// The pendulum of play.md: an agent swings it, the reader pushes, and Q(s, a) is drawn over the action.
// Not here: dynamics and networks (ddpg.js), weights (agents.js), what the knobs page shares (page.js).
"use strict";

(() => {
  const { make, set, shown, path, scale, ticks, stillness } = Page;
  const PUSH = 2; // rad/s
  const ACTIONS = Array.from({ length: 41 }, (_, i) => (i - 20) / 20);
  const STARTS = {
    hanging: () => ({ angle: Math.PI, speed: 0 }),
    upright: () => ({ angle: 0, speed: 0 }),
    anywhere: () => ({ angle: (2 * Math.random() - 1) * Math.PI, speed: 2 * Math.random() - 1 }),
  };
  const agents = Object.fromEntries(Object.entries(DDPG_AGENTS).map(([timesteps, weights]) => [timesteps, DDPG.agent(weights)]));
  const named = (timesteps) => (timesteps === "0" ? "random weights" : `after ${Number(timesteps).toLocaleString("en")} timesteps`);

  // --- what changes ---------------------------------------------------------------------------------------------

  const now = { agent: Object.keys(agents).at(-1), noise: 0, start: "hanging", running: !stillness.matches };

  function startAgain() {
    Object.assign(now, { state: STARTS[now.start](), timestep: 0, sum: 0, reward: 0, waited: 0 });
    now.before = now.state;
    decide();
  }

  /** What the agent thinks of the state of now; the noise is drawn here, once for each timestep. */
  function decide() {
    const observation = DDPG.observe(now.state);
    const agent = agents[now.agent];
    now.mu = DDPG.mu(agent, observation);
    now.action = DDPG.clip(now.mu + now.noise * normal(), 1);
    now.curve = ACTIONS.map((action) => DDPG.q(agent, observation, action));
    now.q = DDPG.q(agent, observation, now.mu);
    const top = now.curve.indexOf(Math.max(...now.curve));
    now.best = { action: ACTIONS[top], q: now.curve[top] };
  }

  const normal = () => Math.sqrt(-2 * Math.log(1 - Math.random())) * Math.cos(2 * Math.PI * Math.random());

  function timestep() {
    const { reward, ...next } = DDPG.step(now.state, DDPG.MAX_TORQUE * now.action);
    Object.assign(now, { before: now.state, state: next, reward, timestep: now.timestep + 1, sum: now.sum + reward });
    if (now.timestep === DDPG.TIME_LIMIT) {
      now.last = now.sum;
      const said = `The time limit of ${DDPG.TIME_LIMIT} timesteps is over. Return: ${shown(now.sum, 1)}.`;
      startAgain();
      say(said);
    } else decide();
  }

  function push(direction) {
    now.state = { ...now.state, speed: DDPG.clip(now.state.speed + direction * PUSH, DDPG.MAX_SPEED) };
    decide();
    draw();
    say(`Pushed ${direction > 0 ? "counter-clockwise" : "clockwise"}. ${situation()}`);
  }

  // --- what is seen ---------------------------------------------------------------------------------------------

  const arm = make("g", {}, make("rect", { x: -0.09, y: -1.09, width: 0.18, height: 1.18, rx: 0.09, class: "play-rod" }), make("circle", { cy: -1, r: 0.05, class: "play-bob" }));
  const torque = make("path", { class: "play-torque" });
  const head = make("polygon", { class: "play-head", points: "0,-0.09 0.15,0 0,0.09" });
  const picture = make(
    "svg",
    {
      viewBox: "-1.3 -1.3 2.6 2.6",
      role: "img",
      "aria-label": "The pendulum. The table below says the same in numbers.",
      class: "play-pendulum",
      click: (event) => {
        const box = picture.getBoundingClientRect();
        push(event.clientX < box.left + box.width / 2 ? 1 : -1);
      },
    },
    make("circle", { r: 1.2, class: "play-ground" }),
    make("line", { x1: 0, x2: 0, y1: -1.2, y2: -1.1, class: "play-goal" }),
    arm,
    make("circle", { r: 0.05, class: "play-pivot" }),
    torque,
    head,
  );

  const box = { left: 48, right: 350, top: 12, bottom: 206 };
  const x = scale(-1, 1, box.left, box.right);
  const curve = make("path", { class: "play-curve" });
  const chosen = make("circle", { r: 6, class: "play-chosen" });
  const top = make("rect", { width: 9, height: 9, class: "play-top" });
  const applied = make("polygon", { class: "play-applied", points: "0,0 6,10 -6,10" });
  const marks = make("g", {});
  const chart = make(
    "svg",
    { viewBox: "0 0 360 252", role: "img", "aria-label": "Q(s, a) over the action. The table below says the same in numbers.", class: "play-chart" },
    make("rect", { x: box.left, y: box.top, width: box.right - box.left, height: box.bottom - box.top, class: "play-frame" }),
    ...[-1, -0.5, 0, 0.5, 1].map((tick) => make("text", { x: x(tick), y: 230, "text-anchor": "middle" }, shown(tick, 1))),
    make("text", { x: (box.left + box.right) / 2, y: 248, "text-anchor": "middle" }, "action a (1 is a torque of 2 N m)"),
    marks,
    curve,
    top,
    chosen,
    applied,
  );

  const cells = {};
  const rows = [
    ["timestep", "Timestep, of 200"],
    ["sum", "Return so far"],
    ["angle", "Angle from upright, in degrees"],
    ["speed", "Angular velocity, in rad/s"],
    ["mu", "Actor's choice \u03bc(s)"],
    ["action", "Action applied, with noise"],
    ["q", "Q(s, \u03bc(s))"],
    ["best", "Highest Q(s, a) on the curve"],
    ["at", "\u2026 at the action"],
    ["reward", "Reward of the last timestep"],
    ["last", "Return of the last episode"],
  ].map(([name, words]) => {
    cells[name] = make("td", { "data-name": name });
    return make("tr", {}, make("th", { scope: "row" }, words), cells[name]);
  });
  const table = make("table", { class: "play-table" }, make("caption", {}, "The same in numbers"), make("tbody", {}, ...rows));
  const words = make("p", { role: "status", "aria-live": "polite", class: "play-words" });

  function put(name, value, digits) {
    cells[name].textContent = value === undefined ? "none yet" : shown(value, digits);
    cells[name].dataset.value = value === undefined ? "" : value;
  }

  /** The arm stands between the last state and this one, `share` of the way, so that it moves smoothly. */
  function turn(share) {
    const angle = now.before.angle + share * (now.state.angle - now.before.angle);
    set(arm, { transform: `rotate(${((-angle * 180) / Math.PI).toFixed(3)})` });
  }

  function draw() {
    turn(now.running ? 0 : 1);
    // A torque is an arc around the pivot; positive is counter-clockwise, which is to the left here.
    const sweep = now.action * 2.4;
    const [endX, endY] = [-0.36 * Math.sin(sweep), -0.36 * Math.cos(sweep)];
    set(torque, { d: `M0 -0.36A0.36 0.36 0 0 ${now.action > 0 ? 0 : 1} ${endX.toFixed(4)} ${endY.toFixed(4)}` });
    const heading = (-sweep * 180) / Math.PI + (now.action > 0 ? 180 : 0);
    set(head, { transform: `translate(${endX.toFixed(4)} ${endY.toFixed(4)}) rotate(${heading.toFixed(2)})`, visibility: Math.abs(now.action) < 0.05 ? "hidden" : "visible" });

    // Whatever the state, 30 units of return are at least as high as this: a flat curve looks flat.
    const [low, high] = [Math.min(...now.curve, now.q), Math.max(...now.curve, now.q)];
    const half = Math.max(15, 0.6 * (high - low));
    const middle = (low + high) / 2;
    const y = scale(middle - half, middle + half, box.bottom, box.top);
    marks.replaceChildren(
      ...ticks(middle - half, middle + half, 5).flatMap((tick) => [
        make("line", { x1: box.left, x2: box.right, y1: y(tick), y2: y(tick), class: "play-grid" }),
        make("text", { x: box.left - 6, y: y(tick) + 4, "text-anchor": "end" }, shown(tick, 0)),
      ]),
    );
    const [zero, seen] = [y(0), Math.abs(middle) < half]; // no return of Pendulum is above 0
    if (seen) marks.append(make("line", { x1: box.left, x2: box.right, y1: zero, y2: zero, class: "play-bound" }));
    set(curve, { d: path(ACTIONS, now.curve, x, y) });
    set(chosen, { cx: x(now.mu), cy: y(now.q) });
    set(top, { x: x(now.best.action) - 4.5, y: y(now.best.q) - 4.5 });
    set(applied, { transform: `translate(${x(now.action)} ${box.bottom})` });
    if (!now.running || now.timestep % 4 === 0) write();
  }

  function write() {
    put("timestep", now.timestep, 0);
    put("sum", now.sum, 1);
    put("angle", (DDPG.wrapped(now.state.angle) * 180) / Math.PI, 0);
    put("speed", now.state.speed, 2);
    put("mu", now.mu, 2);
    put("action", now.action, 2);
    put("q", now.q, 1);
    put("best", now.best.q, 1);
    put("at", now.best.action, 2);
    put("reward", now.reward, 2);
    put("last", now.last, 1);
  }

  function situation() {
    const degrees = Math.abs((DDPG.wrapped(now.state.angle) * 180) / Math.PI);
    const where = degrees < 15 ? "upright" : degrees > 165 ? "hanging" : `${degrees.toFixed(0)} degrees from upright`;
    return (
      `Timestep ${now.timestep}: the pendulum is ${where}. The actor (${named(now.agent)}) chooses ${shown(now.mu, 2)}, ` +
      `which the critic values at ${shown(now.q, 0)}. Return so far: ${shown(now.sum, 0)}.`
    );
  }

  function say(text) {
    words.textContent = text;
    now.said = performance.now();
  }

  // --- controls -------------------------------------------------------------------------------------------------

  const run = make("button", { type: "button", click: () => go(!now.running) });
  function go(running) {
    now.running = running;
    run.textContent = running ? "Pause" : "Go on";
    if (running) requestAnimationFrame(frame);
    draw();
    say(situation());
  }

  const button = (label, does, described) => make("button", { type: "button", click: does, ...(described ? { "aria-label": described } : {}) }, label);
  const noiseShown = make("output", { for: "play-noise" }, "0.00");
  const buttons = make(
    "p",
    {},
    run,
    button("One timestep", () => {
      if (now.running) go(false);
      timestep();
      draw();
      if (now.timestep) say(situation());
    }),
    button("Push \u21ba", () => push(1), "Push counter-clockwise"),
    button("Push \u21bb", () => push(-1), "Push clockwise"),
  );
  const controls = make(
    "div",
    { class: "play-controls" },
    make(
      "fieldset",
      {},
      make("legend", {}, "Agent"),
      ...Object.keys(agents).map((timesteps) =>
        make(
          "label",
          {},
          make("input", {
            type: "radio",
            name: "play-agent",
            value: timesteps,
            checked: timesteps === now.agent,
            change: () => {
              now.agent = timesteps;
              decide();
              draw();
              write();
              say(situation());
            },
          }),
          ` ${named(timesteps)}`,
        ),
      ),
    ),
    make(
      "p",
      {},
      make("label", { for: "play-noise" }, "Noise"),
      make("input", {
        type: "range",
        id: "play-noise",
        min: 0,
        max: 0.5,
        step: 0.05,
        value: 0,
        input: (event) => {
          now.noise = Number(event.target.value);
          noiseShown.textContent = now.noise.toFixed(2);
          decide();
          draw();
        },
      }),
      noiseShown,
    ),
    make(
      "p",
      {},
      make("label", { for: "play-start" }, "Start"),
      make("select", { id: "play-start", change: (event) => (now.start = event.target.value) }, ...Object.keys(STARTS).map((name) => make("option", {}, name))),
      button("Start again", () => {
        startAgain();
        draw();
        write();
        say(situation());
      }),
    ),
  );

  // --- time -----------------------------------------------------------------------------------------------------

  function frame(time) {
    if (!now.running) return;
    // After a pause, or in a page that was hidden, time does not run faster.
    now.waited += Math.min(100, time - (now.seen ?? time)) / 1000;
    now.seen = time;
    while (now.waited >= DDPG.DT) {
      const left = now.waited - DDPG.DT;
      timestep();
      now.waited = left;
      draw();
    }
    turn(now.waited / DDPG.DT);
    if (time - now.said > 8000) say(situation());
    requestAnimationFrame(frame);
  }

  stillness.addEventListener("change", () => stillness.matches && go(false));

  const signs = { "\u25cf": "actor's choice \u03bc(s)", "\u25a1": "top of the curve", "\u25b2": "action applied" };
  const legend = make("p", { class: "play-legend" }, ...Object.entries(signs).map(([sign, means]) => make("span", {}, make("b", {}, sign), ` ${means}`)));
  startAgain();
  document.getElementById("play").replaceChildren(
    make(
      "div",
      { class: "play-two" },
      make("div", { class: "play-controls play-motor" }, picture, buttons),
      make("figure", {}, make("figcaption", {}, "Q(s, a): the return that the critic expects"), chart, legend),
    ),
    controls,
    words,
    table,
  );
  go(now.running);
  if (!now.running) say(`Standing still, since your system asks for reduced motion. \u201cGo on\u201d starts it. ${situation()}`);
})();
