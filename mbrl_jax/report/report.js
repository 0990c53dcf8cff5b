"use strict";
(() => {
  document.documentElement.classList.add("js");
  const calm = window.matchMedia("(prefers-reduced-motion: reduce)");

  /** A drawing puts one state onto a canvas of width w and height h, in a colour, as a ghost if it is a member's. */
  const line = (c, points, width) => {
    c.lineWidth = width;
    c.beginPath();
    points.forEach(([x, y], i) => (i ? c.lineTo(x, y) : c.moveTo(x, y)));
    c.stroke();
  };
  const disc = (c, x, y, radius) => {
    c.beginPath();
    c.arc(x, y, radius, 0, 2 * Math.PI);
    c.fill();
  };
  const cartpole = {
    scene(c, w, h) {
      const unit = w / 5.6, floor = h * 0.8;
      c.strokeStyle = "#999";
      line(c, [[0, floor], [w, floor]], 1);
      for (const end of [-2.4, 2.4]) line(c, [[w / 2 + end * unit, floor - 8], [w / 2 + end * unit, floor + 8]], 2);
    },
    state(c, w, h, [x, , angle], ghost) {
      const unit = w / 5.6, floor = h * 0.8, place = w / 2 + x * unit, top = floor - 0.22 * unit;
      const length = Math.min(2 * unit, h * 0.62);
      if (!ghost) c.fillRect(place - 0.3 * unit, top, 0.6 * unit, 0.22 * unit);
      else c.strokeRect(place - 0.3 * unit, top, 0.6 * unit, 0.22 * unit);
      line(c, [[place, top], [place + length * Math.sin(angle), top - length * Math.cos(angle)]], ghost ? 2.5 : 5);
      disc(c, place, top, 3);
    },
  };
  const acrobot = {
    scene(c, w, h) {
      c.strokeStyle = "#999";
      line(c, [[w * 0.2, h / 2 - h * 0.23], [w * 0.8, h / 2 - h * 0.23]], 1);
    },
    state(c, w, h, [cos1, sin1, cos2, sin2], ghost) {
      const unit = h * 0.23, x = w / 2 + unit * sin1, y = h / 2 + unit * cos1;
      const sin = sin1 * cos2 + cos1 * sin2, cos = cos1 * cos2 - sin1 * sin2;
      line(c, [[w / 2, h / 2], [x, y], [x + unit * sin, y + unit * cos]], ghost ? 2.5 : 5);
      disc(c, w / 2, h / 2, 4);
      disc(c, x, y, 3);
    },
  };
  const hill = (w, h, x) => [((x + 1.2) / 1.8) * w * 0.94 + w * 0.03, h * 0.88 - (Math.sin(3 * x) * 0.45 + 0.55) * h * 0.7];
  const mountainCar = {
    scene(c, w, h) {
      c.strokeStyle = "#999";
      line(c, Array.from({ length: 91 }, (_, i) => hill(w, h, -1.2 + i * 0.02)), 1.5);
      const [x, y] = hill(w, h, 0.5);
      line(c, [[x, y], [x, y - 26], [x + 12, y - 21], [x, y - 16]], 1.5);
    },
    state(c, w, h, [position], ghost) {
      const [x, y] = hill(w, h, position);
      disc(c, x, y - 8, ghost ? 6 : 8);
    },
  };
  const pendulum = {
    scene() {},
    state(c, w, h, [cos, sin], ghost) {
      const length = h * 0.4;
      line(c, [[w / 2, h / 2], [w / 2 - length * sin, h / 2 - length * cos]], ghost ? 2.5 : 6);
      disc(c, w / 2, h / 2, 4);
    },
  };
  const cartpoleSwingup = {
    scene(c, w, h) {
      const unit = w / 5.6, floor = h * 0.55;
      c.strokeStyle = "#999";
      line(c, [[0, floor], [w, floor]], 1);
      for (const end of [-1.8, 1.8]) line(c, [[w / 2 + end * unit, floor - 8], [w / 2 + end * unit, floor + 8]], 2);
    },
    state(c, w, h, [x, cos, sin], ghost) {
      const unit = w / 5.6, floor = h * 0.55, place = w / 2 + x * unit, length = Math.min(unit, h * 0.38);
      const box = [place - 0.2 * unit, floor - 0.1 * unit, 0.4 * unit, 0.2 * unit];
      if (!ghost) c.fillRect(...box);
      else c.strokeRect(...box);
      line(c, [[place, floor], [place + length * sin, floor - length * cos]], ghost ? 2.5 : 5);
      disc(c, place, floor, 3);
    },
  };
  const drawings = { cartpole, acrobot, mountain_car: mountainCar, pendulum, cartpole_swingup: cartpoleSwingup };

  /** Every axis up to the present step, each on its own height, for a task that has no drawing. */
  const drawLines = (c, w, h, data, step) => {
    const axes = data.real[0].length;
    for (let axis = 0; axis < axes; axis++) {
      const values = data.real.map((state) => state[axis]);
      const low = Math.min(...values), span = Math.max(...values) - low || 1, band = h / axes;
      [data.real, ...data.members].forEach((states, who) => {
        c.strokeStyle = data.colours[who];
        const shown = states.slice(0, step + 1);
        const place = (state, i) => [(i / (data.real.length - 1 || 1)) * w, (axis + 0.9 - (0.8 * (state[axis] - low)) / span) * band];
        line(c, shown.map(place), who ? 1 : 2);
      });
    }
  };

  class Film {
    constructor(figure) {
      this.data = JSON.parse(figure.querySelector('script[type="application/json"]').textContent);
      this.canvas = figure.querySelector("canvas");
      this.button = figure.querySelector("button");
      this.slider = figure.querySelector("input");
      this.output = figure.querySelector("output");
      this.last = this.data.real.length - 1;
      this.step = 0;
      this.playing = false;
      this.touched = false;
      const svg = figure.querySelector("svg");
      this.cursor = document.createElementNS(svg.namespaceURI, "line");
      this.cursor.setAttribute("stroke", "#c00");
      this.cursor.setAttribute("y1", this.data.cursor.top);
      this.cursor.setAttribute("y2", this.data.cursor.bottom);
      svg.append(this.cursor);
      this.button.addEventListener("click", () => {
        this.touched = true;
        this.play(!this.playing);
      });
      this.slider.addEventListener("input", () => {
        this.touched = true;
        this.play(false);
        this.show(Number(this.slider.value));
      });
      new ResizeObserver(() => this.resize()).observe(this.canvas);
      this.resize();
    }

    resize() {
      const ratio = window.devicePixelRatio || 1, width = this.canvas.clientWidth;
      if (!width) return;
      this.canvas.width = Math.round(width * ratio);
      this.canvas.height = Math.round((width * ratio * 9) / 16);
      this.ratio = ratio;
      this.show(this.step);
    }

    show(step) {
      this.step = step;
      const whole = Math.floor(step);
      this.slider.value = whole;
      this.output.textContent = `step ${whole} of ${this.last}`;
      const at = this.data.cursor.zero + whole * this.data.cursor.step;
      this.cursor.setAttribute("x1", at);
      this.cursor.setAttribute("x2", at);
      this.draw(whole);
    }

    draw(step) {
      const c = this.canvas.getContext("2d"), w = this.canvas.width / this.ratio, h = this.canvas.height / this.ratio;
      c.setTransform(this.ratio, 0, 0, this.ratio, 0, 0);
      c.clearRect(0, 0, w, h);
      c.lineCap = c.lineJoin = "round";
      const drawing = drawings[this.data.drawing];
      if (!drawing) return drawLines(c, w, h, this.data, step);
      drawing.scene(c, w, h);
      [this.data.real, ...this.data.members].forEach((states, who) => {
        c.strokeStyle = c.fillStyle = this.data.colours[who];
        const ended = step >= states.length;
        c.globalAlpha = who ? (ended ? 0.25 : 0.6) : this.data.members.length ? 0.8 : 1;
        drawing.state(c, w, h, states[Math.min(step, states.length - 1)], who > 0);
        c.globalAlpha = 1;
      });
    }

    play(on) {
      if (on === this.playing) return;
      this.playing = on;
      this.button.textContent = on ? "pause" : "play";
      if (!on) return;
      if (this.step >= this.last) this.show(0);
      let before = performance.now();
      const tick = (now) => {
        if (!this.playing) return;
        const next = Math.min(this.step + (Math.max(0, now - before) / 1000) * this.data.rate, this.last);
        before = now;
        this.show(next);
        if (next >= this.last) this.play(false);
        else requestAnimationFrame(tick);
      };
      requestAnimationFrame(tick);
    }
  }

  const films = new Map([...document.querySelectorAll("figure.animation")].map((figure) => [figure, new Film(figure)]));
  const seen = new IntersectionObserver(
    (entries) => {
      for (const { target, isIntersecting } of entries) {
        const film = films.get(target);
        if (!isIntersecting) film.play(false);
        else if (!film.touched && !calm.matches && film.step < film.last) film.play(true);
      }
    },
    { threshold: 0.5 },
  );
  for (const figure of films.keys()) seen.observe(figure);

  window.addEventListener("beforeprint", () => {
    for (const film of films.values()) {
      film.play(false);
      film.show(film.last);
    }
    for (const each of document.querySelectorAll("details:not([open])")) {
      each.open = true;
      window.addEventListener("afterprint", () => (each.open = false), { once: true });
    }
  });
})();
