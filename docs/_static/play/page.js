// What both pages that can be touched share: making elements, and drawing charts in SVG.
"use strict";

globalThis.Page = (() => {
  const SVG = "http://www.w3.org/2000/svg";

  /** An element with attributes and children; functions among the attributes are event listeners. */
  function make(tag, attributes = {}, ...children) {
    const drawn = ["svg", "g", "path", "line", "circle", "rect", "text", "polygon", "title"].includes(tag);
    const element = drawn ? document.createElementNS(SVG, tag) : document.createElement(tag);
    set(element, attributes);
    element.append(...children);
    return element;
  }

  function set(element, attributes) {
    for (const [name, value] of Object.entries(attributes)) {
      if (typeof value === "function") element.addEventListener(name, value);
      else if (value === false) element.removeAttribute(name);
      else element.setAttribute(name, value === true ? "" : value);
    }
  }

  /** A number for readers: so many digits, with a minus sign as wide as a plus. */
  const shown = (value, digits) => value.toFixed(digits).replace(/^-0(\.0*)?$/, (zero) => zero.slice(1)).replace("-", "\u2212");

  /** "M x y L x y ..." of points in a chart's own numbers. */
  const path = (xs, ys, x, y) => xs.map((value, i) => `${i ? "L" : "M"}${x(value).toFixed(2)} ${y(ys[i]).toFixed(2)}`).join("");

  /** A linear map of numbers to pixels. */
  const scale = (from, to, low, high) => (value) => low + ((value - from) / (to - from)) * (high - low);

  /** Round numbers between two, at most so many of them and one. */
  function ticks(from, to, many) {
    const rough = (to - from) / many;
    const power = 10 ** Math.floor(Math.log10(rough));
    const distance = [1, 2, 5, 10].map((factor) => factor * power).find((each) => each >= rough * 0.999);
    const found = [];
    for (let tick = Math.ceil(from / distance - 1e-9) * distance; tick <= to + 1e-9 * distance; tick += distance) found.push(+tick.toPrecision(9));
    return found;
  }

  const stillness = matchMedia("(prefers-reduced-motion: reduce)");

  return { make, set, shown, path, scale, ticks, stillness };
})();
