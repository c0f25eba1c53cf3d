"use strict";
// Draws the curves and the pictures of the report; the data are in the element "data".
const data = JSON.parse(document.getElementById("data").textContent);
const byId = (id) => document.getElementById(id);
const named = (count, what) => `${count.toLocaleString("en")} ${what}${count === 1 ? "" : "s"}`;

// Curves, in the colours of the page: drawn again when these change.
let drawn = [];

function color(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim();
}

function dataset(curve) {
  const few = curve.points.length <= 12;
  return {
    label: curve.label,
    data: curve.points.map(([x, y]) => ({ x, y })),
    borderColor: color(`--c${curve.color % 8}`),
    backgroundColor: color(`--c${curve.color % 8}`),
    borderDash: curve.reference ? [5, 4] : [],
    clip: 6, // a point on the edge is whole
    borderWidth: curve.reference ? 1.5 : 2,
    pointRadius: few && !curve.reference ? 2.5 : 0,
    pointHoverRadius: 4,
  };
}

function number(value) {
  const short = Number(value.toPrecision(4));
  return short && Math.abs(short) < 1e-3 ? short.toExponential() : short.toString();
}

// Whether a tick of a logarithmic axis is 1, 2 or 5 times a power of ten.
function isRound(tick) {
  const [digits] = Number(tick.value.toPrecision(6)).toExponential().split("e");
  return ["1", "2", "5"].includes(digits);
}

function options(chart) {
  const quiet = color("--quiet"), line = color("--line");
  const ticks = { color: quiet, maxRotation: 0, autoSkipPadding: 16 };
  return {
    animation: false,
    parsing: false,
    maintainAspectRatio: false,
    interaction: { mode: "index", intersect: false },
    scales: {
      x: {
        type: "linear",
        min: 0,
        max: data.step,
        grid: { display: false },
        border: { color: line },
        ticks: { ...ticks, maxTicksLimit: 6, callback: (value) => value.toLocaleString("en") },
      },
      y: {
        type: chart.log ? "logarithmic" : "linear",
        grid: { color: line },
        border: { display: false },
        ticks: { ...ticks, maxTicksLimit: 6, callback: number },
        afterBuildTicks(axis) {
          if (chart.log) axis.ticks = axis.ticks.filter(isRound);
        },
      },
    },
    plugins: {
      legend: {
        display: chart.curves.length > 1,
        position: "bottom",
        labels: { color: color("--ink"), boxWidth: 14, boxHeight: 2, padding: 10 },
      },
      tooltip: {
        callbacks: {
          title: (items) => `step ${items[0].parsed.x.toLocaleString("en")}`,
          label: (item) => ` ${item.dataset.label}: ${number(item.parsed.y)}`,
        },
      },
    },
  };
}

function drawCharts() {
  for (const chart of drawn) chart.destroy();
  Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
  drawn = [...document.querySelectorAll("[data-chart]")].map((figure) => {
    const chart = data.charts[Number(figure.dataset.chart)];
    figure.querySelector(".quiet").textContent = chart.note;
    return new Chart(figure.querySelector("canvas"), {
      type: "line",
      data: { datasets: chart.curves.map(dataset) },
      options: options(chart),
    });
  });
}

// Pictures: those of the teacher and of the student, prompt by prompt.
const images = new Map();
let turn = 0;

function load(number) {
  if (!images.has(number)) {
    const image = new Image();
    image.src = data.images[number];
    images.set(number, image.decode().then(() => image));
  }
  return images.get(number);
}

function makePairs(ladder) {
  const small = Math.max(ladder.width, ladder.height) <= 32;
  byId("pairs").classList.toggle("small", small);
  for (const prompt of ladder.prompts) {
    const pair = document.createElement("figure"), both = document.createElement("div");
    const caption = document.createElement("figcaption");
    pair.className = "pair";
    caption.textContent = prompt;
    for (const who of ["teacher", "student"]) {
      const canvas = document.createElement("canvas");
      canvas.className = who;
      canvas.width = ladder.width;
      canvas.height = ladder.height;
      canvas.setAttribute("role", "img");
      canvas.setAttribute("aria-label", `${who}: ${prompt}`);
      both.append(canvas);
    }
    pair.append(both, caption);
    byId("pairs").append(pair);
  }
}

async function showPictures() {
  const ladder = data.ladders[Number(byId("step").value)], mine = ++turn;
  const student = ladder.student[Number(byId("count").value)];
  const step = ladder.step.toLocaleString("en");
  byId("step-value").textContent = step;
  byId("count-value").textContent = student.steps;
  byId("step").setAttribute("aria-valuetext", `training step ${step}`);
  byId("count").setAttribute("aria-valuetext", named(student.steps, "sampling step"));
  byId("teacher-name").textContent = `teacher, ${named(ladder.teacher.steps, "step")}`;
  byId("student-name").textContent =
    `student, ${named(student.steps, "step")}, after ${named(ladder.step, "training step")}`;
  byId("numbers").textContent = student.numbers;
  const strips = await Promise.all([load(ladder.teacher.image), load(student.image)]);
  if (mine !== turn) return; // a slider was moved meanwhile
  for (const [who, strip] of [["teacher", strips[0]], ["student", strips[1]]]) {
    document.querySelectorAll(`#pairs canvas.${who}`).forEach((canvas, i) => {
      const { width, height } = canvas;
      canvas.getContext("2d").drawImage(strip, i * width, 0, width, height, 0, 0, width, height);
    });
  }
  byId("pairs").dataset.shown = `${ladder.step} ${student.steps}`;
}

drawCharts();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawCharts);
if (data.ladders.length) {
  makePairs(data.ladders[0]);
  // A few steps are what a student is for; the first number of four or more.
  const counts = data.ladders[0].student.map((one) => one.steps);
  const chosen = counts.findIndex((steps) => steps >= 4);
  byId("count").value = chosen < 0 ? counts.length - 1 : chosen;
  for (const id of ["step", "count"]) byId(id).addEventListener("input", showPictures);
  showPictures();
}
