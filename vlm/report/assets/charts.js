"use strict";
// Line charts as SVG. Their colours are in parts.css, so that they follow the light or dark theme.

// A chart of `series`: {name, points: [[x, y, low, high]] (low and high may be missing), dots, pale}. Returns a figure.
function lineChart({
  title,
  note,
  series,
  xLabel,
  yText = value => String(value),
  zero = false,
  ticks = null,
  small = false
}) {
  const [width, height] = small ? [260, 170] : [460, 250];
  const margin = { left: 46, right: 12, top: 10, bottom: small ? 24 : 40 };
  const points = series.flatMap(one => one.points);
  const xs = points.map(point => point[0]);
  const ys = points.flatMap(point => point.slice(1));
  const [x0, x1] = [Math.min(...xs), Math.max(...xs)];
  const grid = niceTicks(zero ? 0 : Math.min(...ys), Math.max(...ys), small ? 3 : 5);
  const x = value => margin.left + ((value - x0) / (x1 - x0 || 1)) * (width - margin.left - margin.right);
  const y = value =>
    height - margin.bottom - ((value - grid[0]) / (grid.at(-1) - grid[0] || 1)) * (height - margin.top - margin.bottom);
  const chart = svg("svg", {
    viewBox: `0 0 ${width} ${height}`,
    class: "chart",
    role: "img",
    "aria-label": describe(title, series, yText)
  });
  for (const value of grid) {
    chart.append(
      svg("line", { class: "grid", x1: margin.left, x2: width - margin.right, y1: y(value), y2: y(value) }),
      svg("text", { class: "tick", x: margin.left - 6, y: y(value) + 4, "text-anchor": "end" }, yText(value))
    );
  }
  for (const value of ticks ?? niceTicks(x0, x1, 5).filter(tick => tick >= x0 && tick <= x1)) {
    chart.append(
      svg(
        "text",
        { class: "tick", x: x(value), y: height - margin.bottom + 16, "text-anchor": "middle" },
        value.toLocaleString("en")
      )
    );
  }
  if (!small)
    chart.append(
      svg(
        "text",
        { class: "tick", x: (margin.left + width - margin.right) / 2, y: height - 4, "text-anchor": "middle" },
        xLabel
      )
    );
  const lines = series.map((one, number) => line(one, `series-${number}`, x, y));
  chart.append(...lines.toReversed().flat()); // the first series is on top
  const legend = series.length > 1 && !small ? [legendOf(series)] : [];
  return element(
    "figure",
    {},
    element("figcaption", {}, title),
    note ? element("p", { class: "note" }, note) : null,
    ...legend,
    chart
  );
}

function line({ name, points, dots, pale }, className, x, y) {
  const at = (px, py) => `${x(px).toFixed(1)},${y(py).toFixed(1)}`;
  const parts = [];
  if (points.length > 1 && points.every(point => point.length === 4)) {
    const outline = [
      ...points.map(point => at(point[0], point[3])),
      ...points.toReversed().map(point => at(point[0], point[2]))
    ];
    parts.push(svg("polygon", { class: `interval ${className}`, points: outline.join(" ") }));
  }
  parts.push(
    svg("polyline", {
      class: `line ${className} ${pale ? "pale" : ""}`,
      points: points.map(point => at(point[0], point[1])).join(" ")
    })
  );
  if (dots) {
    for (const point of points) {
      const shown = point
        .slice(1)
        .map(value => value.toPrecision(4))
        .join(", ");
      parts.push(
        svg(
          "circle",
          { class: `dot ${className}`, cx: x(point[0]), cy: y(point[1]), r: 3.5 },
          svg("title", {}, `${name}, ${point[0]}: ${shown}`)
        )
      );
    }
  }
  return parts;
}

function legendOf(series) {
  return element(
    "p",
    { class: "legend" },
    ...series.map((one, number) => element("span", { class: `series-${number}` }, one.name))
  );
}

function describe(title, series, yText) {
  const ends = series.map(({ name, points }) => `${name} from ${yText(points[0][1])} to ${yText(points.at(-1)[1])}`);
  return `${title}: ${ends.join("; ")}`;
}

// Round values from one below `low` to one above `high`, about `most` of them.
function niceTicks(low, high, most) {
  const raw = (high - low || Math.abs(high) || 1) / most;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map(factor => factor * power).find(candidate => candidate >= raw);
  const ticks = [];
  for (let k = Math.floor(low / step + 1e-9); ; k++) {
    ticks.push(Number((k * step).toPrecision(10)));
    if (k * step >= high - 1e-9 * step) return ticks;
  }
}
