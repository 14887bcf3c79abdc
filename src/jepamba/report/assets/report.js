// Draws the charts of a report with uPlot, from the JSON beside each. Python's jepamba.report.plots writes that JSON.
"use strict";

const colour = name => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

const digits = value => {
  if (value == null) return "–";
  const size = Math.abs(value);
  return size >= 10000 ? Math.round(value).toLocaleString("en") : size >= 0.001 || !size ? String(Number(value.toPrecision(4)))
    : value.toExponential(2);
};

// The index of the value that is nearest to the cursor: the series of a chart have points at different x.
function nearest(plot, series, index) {
  const values = plot.data[series];
  for (let step = 0; step < values.length; step++) {
    if (values[index - step] != null) return index - step;
    if (values[index + step] != null) return index + step;
  }
  return index;
}

// The labels of the horizontal lines, at the right end and one below the other.
function drawLevels(plot, levels) {
  const context = plot.ctx, ratio = devicePixelRatio, { left, top, width, height } = plot.bbox;
  context.save();
  context.font = `${12 * ratio}px system-ui, sans-serif`;
  context.textAlign = "right";
  const shown = levels.map(level => ({ ...level, y: plot.valToPos(level.value, "y", true) }))
    .filter(level => level.y >= top && level.y <= top + height).sort((a, b) => a.y - b.y);
  context.strokeStyle = colour("--level");
  context.setLineDash([5 * ratio, 4 * ratio]);
  context.lineWidth = ratio;
  for (const { y } of shown) {
    context.beginPath();
    context.moveTo(left, y);
    context.lineTo(left + width, y);
    context.stroke();
  }
  let lowest = top;
  for (const { label, value, y } of shown) {
    const text = `${label} ${digits(value)}`, edge = left + width - 4 * ratio, size = context.measureText(text).width;
    lowest = Math.max(y - 4 * ratio, lowest + 14 * ratio);
    context.fillStyle = colour("--card");
    context.fillRect(edge - size - 3 * ratio, lowest - 11 * ratio, size + 6 * ratio, 14 * ratio);
    context.fillStyle = colour("--mute");
    context.fillText(text, edge, lowest);
  }
  context.restore();
}

function draw(figure) {
  const spec = JSON.parse(figure.querySelector("script").textContent);
  const place = figure.querySelector(".plot");
  const values = spec.levels.map(level => level.value);
  const range = (plot, low, high) => {
    if (low == null) return [0, 1];
    if (spec.log) return uPlot.rangeLog(low, high, 10, false);
    if (spec.top != null && low < spec.top) high = Math.min(high, spec.top);
    const whole = Math.min(low, ...values), margin = 0.06 * (high - whole || Math.abs(high) || 1);
    return [whole - margin, high + margin];
  };
  const axis = label => ({
    label, labelSize: 20, labelGap: 2, labelFont: "12px system-ui, sans-serif", font: "12px system-ui, sans-serif",
    stroke: () => colour("--mute"), grid: { stroke: () => colour("--grid"), width: 1 }, ticks: { show: false },
  });
  const number = (plot, ticks) => ticks.map(tick => tick == null ? "" : digits(tick));
  const size = () => ({ width: Math.max(place.clientWidth, 200), height: spec.height });
  const options = {
    ...size(),
    scales: { x: { time: false }, y: spec.log ? { distr: 3, range } : { range } },
    axes: [{ ...axis(spec.x), values: number, space: 60, size: 28 }, { ...axis(spec.y), values: number, size: 52 }],
    cursor: { dataIdx: nearest, points: { size: 7 }, drag: { x: true, y: false } },
    series: [
      { label: spec.x, value: (plot, value) => digits(value) },
      ...spec.series.map(series => ({
        label: series.label, spanGaps: true, value: (plot, value) => digits(value),
        stroke: () => colour(`--c${series.colour}`), width: series.faint ? 1 : 2, alpha: series.faint ? 0.45 : 1,
        dash: series.dashed ? [6, 4] : undefined,
        points: { show: series.dots, size: 7, fill: () => colour(`--c${series.colour}`) },
      })),
    ],
    hooks: { draw: [plot => drawLevels(plot, spec.levels)] },
  };
  const plot = new uPlot(options, uPlot.join(spec.series.map(series => series.points)), place);
  new ResizeObserver(() => plot.setSize(size())).observe(place);
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => plot.redraw());
}

document.querySelectorAll("figure.chart").forEach(draw);
