// Pendulum-v1 and the two networks of DDPG, as the pages of this folder compute them.
// Not here: the weights (agents.js, written by `python -m docs.play.agents`) and anything that is drawn.
// tests/test_play.py holds every function to Gymnasium and to the Python package, to 1e-5.
"use strict";

globalThis.DDPG = (() => {
  const MAX_TORQUE = 2; // N m; an action of 1 is this torque
  const MAX_SPEED = 8; // rad/s
  const DT = 0.05; // seconds in a timestep
  const TIME_LIMIT = 200; // timesteps in an episode

  const clip = (value, bound) => Math.min(bound, Math.max(-bound, value));

  /** An angle in radians, between -pi and pi; 0 is upright, positive is counter-clockwise. */
  function wrapped(angle) {
    const turn = 2 * Math.PI;
    return ((((angle + Math.PI) % turn) + turn) % turn) - Math.PI;
  }

  /** One timestep of gymnasium.envs.classic_control.pendulum, with g = 10, m = 1, l = 1. */
  function step({ angle, speed }, torque) {
    const u = clip(torque, MAX_TORQUE);
    const reward = -(wrapped(angle) ** 2 + 0.1 * speed ** 2 + 0.001 * u ** 2);
    const next = clip(speed + (15 * Math.sin(angle) + 3 * u) * DT, MAX_SPEED);
    return { angle: angle + next * DT, speed: next, reward };
  }

  /** s: what the networks see of a state. */
  const observe = ({ angle, speed }) => [Math.cos(angle), Math.sin(angle), speed];

  /** The layers of a network from base64: weight and bias of each in turn, float32. */
  function network(texts) {
    const numbers = texts.map((text) => {
      const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
      return new Float32Array(bytes.buffer);
    });
    const layers = [];
    for (let i = 0; i < numbers.length; i += 2) layers.push({ weight: numbers[i], bias: numbers[i + 1] });
    return layers;
  }

  /** Linear layers with ReLU between them. */
  function forward(layers, input) {
    return layers.reduce((values, { weight, bias }, i) => {
      const outputs = new Array(bias.length);
      for (let row = 0; row < bias.length; row++) {
        let sum = bias[row];
        for (let column = 0; column < values.length; column++) sum += weight[row * values.length + column] * values[column];
        outputs[row] = i < layers.length - 1 ? Math.max(0, sum) : sum;
      }
      return outputs;
    }, input);
  }

  const agent = ({ actor, critic }) => ({ actor: network(actor), critic: network(critic) });

  /** mu(s), between -1 and 1. */
  const mu = ({ actor }, observation) => Math.tanh(forward(actor, observation)[0]);

  /** Q(s, a), for an action between -1 and 1: a discounted return. */
  const q = ({ critic }, observation, action) => forward(critic, [...observation, action])[0];

  return { MAX_TORQUE, MAX_SPEED, DT, TIME_LIMIT, clip, wrapped, step, observe, agent, mu, q };
})();
