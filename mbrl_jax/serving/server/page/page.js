"use strict";

// CartPole-v1 as Gymnasium has it (Barto, Sutton & Anderson 1983): SI units, one explicit Euler step each 20 ms.
const GRAVITY = 9.8, CART = 1.0, POLE = 0.1, HALF = 0.5, FORCE = 10.0, STEP = 0.02;
const TRACK = 2.4, FALL = 12 * Math.PI / 180;
const PUSH = 0.6; // radians per second that a push adds to the pole
const HORIZON = 50, IMAGINE_EVERY = 10; // steps

const find = id => document.getElementById(id);
const world = find("world"), fan = find("fan"), state = find("state"), problem = find("problem");
let key = "", members = 0, pole = fresh(), steps = 0, balanced = 0, paused = false, imagined = null, most = 0.05, running = false;

function fresh() { return [0, 0, 0.02 * (Math.random() - 0.5), 0]; }

function moved([x, v, angle, turning], action) {
  const force = action === 1 ? FORCE : -FORCE, total = CART + POLE, sine = Math.sin(angle), cosine = Math.cos(angle);
  const pull = (force + POLE * HALF * turning * turning * sine) / total;
  const turn = (GRAVITY * sine - cosine * pull) / (HALF * (4 / 3 - POLE * cosine * cosine / total));
  const speed = pull - POLE * HALF * turn * cosine / total;
  return [x + STEP * v, v + STEP * speed, angle + STEP * turning, turning + STEP * turn];
}

async function ask(path, body) {
  const headers = body ? { "content-type": "application/json" } : {};
  if (key) headers["x-api-key"] = key;
  const answer = await fetch(path, body ? { method: "POST", headers, body: JSON.stringify(body) } : { headers });
  if (answer.status === 401) {
    find("keyform").hidden = false;
    throw new Error("The server asks for its key.");
  }
  if (!answer.ok) {
    const told = await answer.json();
    throw new Error(`${told.field}: ${told.detail}`);
  }
  return answer;
}

function colour(disagreement) {
  const share = Math.min(1, disagreement / most);
  return `hsl(${220 - 190 * share} 80% 50%)`;
}

function ink() { return getComputedStyle(document.body).color; }

function drawWorld() {
  const at = world.getContext("2d"), { width, height } = world, scale = width / (2 * TRACK + 0.8), floor = height * 0.75;
  at.clearRect(0, 0, width, height);
  at.strokeStyle = at.fillStyle = ink();
  at.lineWidth = 2;
  at.beginPath();
  at.moveTo(width / 2 - TRACK * scale, floor);
  at.lineTo(width / 2 + TRACK * scale, floor);
  for (const end of [-TRACK, TRACK]) {
    at.moveTo(width / 2 + end * scale, floor - 12);
    at.lineTo(width / 2 + end * scale, floor + 12);
  }
  at.stroke();
  const x = width / 2 + pole[0] * scale;
  at.fillRect(x - 40, floor - 36, 80, 28);
  at.lineWidth = 12;
  at.lineCap = "round";
  at.strokeStyle = colour(imagined ? imagined[0].disagreement[0] : 0);
  at.beginPath();
  at.moveTo(x, floor - 36);
  at.lineTo(x + Math.sin(pole[2]) * 2 * HALF * scale, floor - 36 - Math.cos(pole[2]) * 2 * HALF * scale);
  at.stroke();
}

function drawFan() {
  const at = fan.getContext("2d"), { width, height } = fan, left = 72, bottom = height - 40;
  const degrees = value => bottom / 2 - value * 180 / Math.PI / 15 * (bottom / 2 - 10);
  const time = step => left + step / HORIZON * (width - left - 12);
  at.clearRect(0, 0, width, height);
  at.fillStyle = at.strokeStyle = ink();
  at.lineWidth = 1;
  at.font = "22px system-ui, sans-serif";
  at.textAlign = "right";
  for (const mark of [-12, 0, 12]) {
    const y = degrees(mark * Math.PI / 180);
    at.globalAlpha = 0.35;
    at.beginPath();
    at.moveTo(left, y);
    at.lineTo(width - 12, y);
    at.stroke();
    at.globalAlpha = 1;
    at.fillText(`${mark < 0 ? "−" : ""}${Math.abs(mark)}°`, left - 6, y + 8);
  }
  at.fillText(`${(HORIZON * STEP).toFixed(0)} s`, width - 12, height - 10);
  at.textAlign = "left";
  at.fillText("now", left, height - 10);
  if (!imagined) return;
  at.lineWidth = 3;
  for (let member = 0; member < members; member += 1) {
    for (let step = 1; step < imagined.length; step += 1) {
      if (!imagined[step].took[member]) break;
      at.strokeStyle = colour(imagined[step].disagreement[member]);
      at.beginPath();
      at.moveTo(time(step), degrees(imagined[step - 1].observation[member][2]));
      at.lineTo(time(step + 1), degrees(imagined[step].observation[member][2]));
      at.stroke();
    }
  }
}

function drawScale() {
  const scale = find("scale"), at = scale.getContext("2d");
  for (let x = 0; x < scale.width; x += 1) {
    at.fillStyle = colour(most * x / scale.width);
    at.fillRect(x, 0, 1, scale.height);
  }
  find("most").textContent = most.toPrecision(2);
}

async function imagine() {
  const answer = await ask("/imagine", { observation: pole, horizon: HORIZON, members: "all" });
  const lines = (await answer.text()).trim().split("\n").map(JSON.parse).slice(1);
  if (!lines.length) return;
  imagined = lines;
  const highest = Math.max(...lines.map(line => Math.max(...line.disagreement.filter((_, place) => line.took[place]))));
  if (highest > most) {
    most = highest;
    drawScale();
  }
}

function push(direction) {
  pole[3] += direction * PUSH;
  state.textContent = `pushed to the ${direction < 0 ? "left" : "right"}`;
  drawWorld();
}

function tell() {
  const angle = (pole[2] * 180 / Math.PI).toFixed(1), doubt = imagined ? imagined[0].disagreement[0].toPrecision(2) : "not asked";
  state.textContent = `${(balanced * STEP).toFixed(1)} s without a fall · angle ${angle}° · disagreement ${doubt}`;
}

async function run() {
  if (running) return;
  running = true;
  try {
    while (!paused) {
      const begun = performance.now();
      const { action } = await (await ask("/act", { observation: pole })).json();
      if (members && steps % IMAGINE_EVERY === 0) await imagine();
      pole = moved(pole, action);
      steps += 1;
      balanced += 1;
      if (Math.abs(pole[0]) > TRACK || Math.abs(pole[2]) > FALL) {
        pole = fresh();
        balanced = 0;
      }
      drawWorld();
      drawFan();
      if (steps % 5 === 0) tell();
      problem.textContent = "";
      await new Promise(done => setTimeout(done, Math.max(0, STEP * 1000 - (performance.now() - begun))));
    }
  } catch (error) {
    problem.textContent = `${error.message} Press Pause twice to go on.`;
    pause(true);
  } finally {
    running = false;
  }
}

function pause(wanted) {
  paused = wanted;
  find("pause").setAttribute("aria-pressed", String(paused));
  if (!paused) run();
}

async function begin() {
  try {
    const served = await (await ask("/ready")).json();
    members = served.members;
    const model = members ? `, and a model of ${members} members` : "";
    find("served").textContent = `${served.export}: a policy for ${served.task} (${served.policy.slice(0, 12)})${model}.`;
    const known = served.task === "CartPole-v1";
    find("play").hidden = !known;
    find("other").hidden = known;
    if (!known) return;
    drawScale();
    drawWorld();
    drawFan();
    pause(matchMedia("(prefers-reduced-motion: reduce)").matches);
  } catch (error) {
    problem.textContent = error.message;
  }
}

find("left").addEventListener("click", () => push(-1));
find("right").addEventListener("click", () => push(1));
find("pause").addEventListener("click", () => pause(!paused));
find("reset").addEventListener("click", () => { pole = fresh(); balanced = 0; drawWorld(); });
find("keyform").addEventListener("submit", event => {
  event.preventDefault();
  key = find("key").value;
  find("keyform").hidden = true;
  problem.textContent = "";
  pause(false);
});
world.addEventListener("pointerdown", event => push(event.offsetX < world.clientWidth / 2 ? -1 : 1));
addEventListener("keydown", event => {
  if (event.target instanceof HTMLInputElement || find("play").hidden) return;
  const direction = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (direction) {
    event.preventDefault();
    push(direction);
  }
});
begin();
